"""What a search tries: skill vectors, combinations of them, and λ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pastry.config import PastConfig, SearchSettings
from pastry.config.search import LARGEST_GRID, EarlyStopping
from pastry.errors import PastryError
from pastry.vectors.modules import Lambda, ModuleLambdas, parse_lambda

LINEAR = "linear"
"""Σ w_i·v_i with weights that are searched, too; in memory, like λ."""
REST = "all"
"""The λ of the modules in none of `groups`."""
Point = dict[str, Any]
"""{"source": a candidate's name, "lambda": a number or {group: number}}, and of `linear` "weights": {vector: number}."""


@dataclass(frozen=True)
class Candidate:
    """A skill vector to try at every λ, or a way to make one of several."""

    name: str
    method: str
    """single, linear, or a method of pastry.vectors.algebra."""
    of: tuple[str, ...]
    """Names of the vectors it is made of; of a single one its own."""
    round: int | None = None


def own_vectors(config: PastConfig) -> dict[str, tuple[str, int]]:
    """Name → (source, round) of the run's own vectors that are tried: a source's name is its last round's."""
    rounds = config.search.rounds
    known = list(range(1, config.rounds + 1))
    wanted = rounds if isinstance(rounds, list) else known if rounds == "all" else known[-1:]
    if not wanted or set(wanted) - set(known):
        raise PastryError(f"search.rounds = {rounds}: wanted some of 1 to {config.rounds}, the run's rounds")
    names = {}
    for source in config.sources:
        names |= {source if k == config.rounds else f"{source}/{k}": (source, k) for k in sorted(set(wanted))}
    return names


def candidates(own: Mapping[str, tuple[str, int]], registered: Iterable[str], settings: SearchSettings) -> list[Candidate]:
    """Every vector alone, then the combinations, the consensus among them, where there are two or more to combine.

    A source's earlier rounds are in its last one already, so combinations are of the last there is, and of the registry's.
    Raises PastryError for a method that does not exist.
    """
    found = [Candidate(name, "single", (name,), k) for name, (_, k) in own.items()]
    found += [Candidate(name, "single", (name,)) for name in registered]
    combined = tuple([*{source: name for name, (source, _) in own.items()}.values(), *registered])
    methods = dict.fromkeys(["consensus", *settings.combinations])
    if settings.combinations:
        from pastry.vectors.algebra.merging import parameters  # numba takes its time: only where a method must be looked up

        for method in methods.keys() - {LINEAR}:
            parameters(method)
    if len(combined) > 1:
        found += [Candidate(f"{method}({','.join(combined)})", method, combined) for method in methods]
    return found


@dataclass(frozen=True)
class Space:
    """All candidates at all λ. Picklable: Tune keeps it for `Tuner.restore`."""

    candidates: tuple[Candidate, ...]
    settings: SearchSettings

    @property
    def method(self) -> str:
        """optuna, grid or random."""
        if self.settings.method != "auto":
            return self.settings.method
        return "grid" if self.size is not None and self.size <= LARGEST_GRID else "optuna"

    @property
    def size(self) -> int | None:
        """Points of a finite space."""
        values = self.settings.lambdas
        if not isinstance(values, list) or any(candidate.method == LINEAR for candidate in self.candidates):
            return None
        return len(self.candidates) * len(values) ** max(1, len(self.lambda_keys))

    @property
    def lambda_keys(self) -> list[str]:
        """The groups that have a λ of their own, and `all`; none: one λ for everything."""
        return [*self.settings.groups, REST] if self.settings.groups else []

    @property
    def trials(self) -> int:
        return self.size if self.method == "grid" else self.settings.trials

    def check(self) -> None:
        """Raise PastryError if the trials are too few for every candidate to be tried once."""
        if self.trials < len(self.candidates):
            raise PastryError(
                f"search.trials = {self.settings.trials}, but there are {len(self.candidates)} vectors and combinations, each "
                "of which is tried once at least: raise it, or name fewer"
            )

    @property
    def nearest(self) -> float:
        """The λ nearest to the paper's 1, where every candidate is tried first."""
        wanted = self.settings.lambdas
        if isinstance(wanted, list):
            return min(wanted, key=lambda lam: abs(lam - 1))
        return min(max(1.0, wanted.low), wanted.high)

    @property
    def early_stopping(self) -> EarlyStopping | None:
        stopping = self.settings.early_stopping
        if stopping == "auto":
            return EarlyStopping() if self.method != "grid" else None
        return stopping

    def subsets(self, questions: int) -> list[int]:
        """Questions asked after each step of a trial: the last step's are all."""
        stopping, sizes = self.early_stopping, [questions]
        while stopping and sizes[0] // stopping.factor >= stopping.smallest:
            sizes.insert(0, questions // stopping.factor ** len(sizes))
        return sizes

    def point(self, config: Mapping[str, Any]) -> Point:
        """A point from what Tune hands to a trial, which knows the vectors of a `linear` one by number."""
        point = {"source": config["source"], "lambda": config["lambda"]}
        chosen = self.named[point["source"]]
        if chosen.method == LINEAR:
            point["weights"] = {vector: config["weights"][str(index)] for index, vector in enumerate(chosen.of)}
        return point

    def place(self, point: Point) -> tuple[int, list[float]]:
        """Of a point in the grid: by candidate, then by λ."""
        lam = point["lambda"]
        return list(self.named).index(point["source"]), list(lam.values()) if isinstance(lam, Mapping) else [lam]

    @property
    def named(self) -> dict[str, Candidate]:
        return {candidate.name: candidate for candidate in self.candidates}


def lambdas(settings: SearchSettings) -> str:
    """The λ that are tried, in words."""
    wanted, groups = settings.lambdas, f" for each of {', '.join([*settings.groups, REST])}" if settings.groups else ""
    if isinstance(wanted, list):
        return ", ".join(f"{lam:g}" for lam in wanted) + groups
    return f"{wanted.low:g} … {wanted.high:g}{' (log)' if wanted.log else ''}{groups}"


def as_lambda(found: float | Mapping[str, float], factor: float = 1.0) -> Lambda:
    """factor·λ from a point or a JSON document: a number, or {group: number}, where `all` stands for the rest."""
    if not isinstance(found, Mapping):
        return factor * found
    rules = sorted(found.items(), key=lambda item: item[0] == REST)  # the first rule that matches counts
    return parse_lambda(",".join(f"{group}={factor * lam!r}" for group, lam in rules), "search")


def lambda_document(lam: Lambda) -> float | dict[str, float]:
    """What `as_lambda` makes λ of."""
    return {rule.group: rule.at_first for rule in lam.rules} if isinstance(lam, ModuleLambdas) else lam


def plain(lam: Lambda) -> float | str:
    """λ for a document or a person: the number, or the rules as they are written."""
    return lam.text if isinstance(lam, ModuleLambdas) else lam


def lambda_words(lam: float | Mapping[str, float]) -> str:
    """λ of a point in words: 0.75, or attention=0.5,all=1."""
    return ",".join(f"{group}={each:.3g}" for group, each in lam.items()) if isinstance(lam, Mapping) else f"{lam:.3g}"


def attached(point: Point, candidate: Candidate) -> dict[str, Lambda]:
    """What the engine attaches for a point: vector → λ. The weights of `linear` are shares: they are scaled to sum to 1."""
    if candidate.method != LINEAR:
        return {candidate.name: as_lambda(point["lambda"])}
    return {vector: as_lambda(point["lambda"], share) for vector, share in shares(point).items()}


def shares(point: Point) -> dict[str, float]:
    """The weights of a `linear` point, scaled to sum to 1."""
    total = sum(point["weights"].values())
    return {vector: weight / total for vector, weight in point["weights"].items()}


def source_label(point: Point) -> str:
    """What a point injects, in words: the weights of `linear` belong to it."""
    if "weights" not in point:
        return point["source"]
    return f"{LINEAR}({','.join(f'{share:.2f}·{vector}' for vector, share in shares(point).items())})"
