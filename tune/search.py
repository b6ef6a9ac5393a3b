"""The search stage: which skill, and which λ? A Ray Tune sweep in memory, then the winner on questions it never saw.

Each Tune worker loads the target and all vectors once; a trial changes λ in place, always from θ_target. No checkpoint is
written.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from pastry.domains import load_domain
from pastry.domains.base import Domain
from pastry.domains.retention import retention_questions
from pastry.errors import PastryError
from pastry.evaluation.measure import Bench, Items, Measurement, measure_split, proportion
from pastry.evaluation.objective import best, pareto
from pastry.evaluation.statistics import independent_difference
from pastry.pipeline.space import LINEAR, Point, Space, as_lambda, attached, lambda_words, plain, source_label
from pastry.pipeline.stage import Context
from pastry.vectors.files import read_json, write_json
from pastry_tune.sweep import reason, run_trials
from pastry_tune.trial import Sweep, identity
from pastry_tune.vectors import gather, keep_winner

CURVE = ("n", "accuracy", "low", "high", "well_formed")
MEASURED = (*CURVE, "perplexity", "retention", "objective", "complete", "seconds")
RECORDED_SECONDS = 15.0
"""How often trials that have ended go to MLflow while others run."""


def search(context: Context) -> dict[str, Any]:
    """Writes `search.json` and `winner/`, the skill vector that every later stage takes.

    Raises PastryError where no trial succeeded; what was measured before is kept for the next attempt.
    """
    settings, resources = context.settings, context.config.resources
    vectors, found = gather(context)
    space, domain = Space(tuple(found), settings["search"]), load_domain(*_domain(settings))
    bench = Bench(context.model("target"), vectors, settings, resources.cpus_per_worker)
    items = _items(domain, settings)
    space.check()
    known, workers = context.work / "known", settings["concurrency"]
    known.mkdir(exist_ok=True)
    sweep = Sweep(bench, space, items, space.subsets(len(items.questions)), settings["search"].penalties, known)

    log = TrialLog(context, space)
    results = run_trials(space, sweep, settings["seed"], resources, workers, context.work, log.ended)
    for result in results:
        log.add(result.config, None if result.error else result.metrics, reason(result.error) if result.error else None)
    log.record()
    points = [space.point(result.config) for result in results]
    if space.method == "grid":  # in which Tune has another order after a crash
        points.sort(key=space.place)
    log.in_order(points)
    trials, failed = log.trials, log.failed
    if not any(trial["complete"] for trial in trials):
        raise PastryError(
            f"search: {_every(failed)}; target, vectors and what was measured are kept: the same command tries again"
        )
    if failed:
        context.say(f"{len(failed)} of {len(trials) + len(failed)} trials failed; first: {_failure(failed[0])}")

    reference = Measurement(**read_json(sweep.reference))
    for trial, on_front in zip(trials, pareto(trials), strict=True):
        trial["pareto"] = on_front
    winner = best(trials)
    point = log.points[winner["id"]]
    chosen = space.named[point["source"]]
    fingerprint = keep_winner(vectors, chosen, point, context.out / "winner")
    fresh = Items(domain.questions(1, "test"))
    asked = measure_split(bench, (attached(point, chosen), fresh), resources, workers).correct
    validation = Measurement(**read_json(sweep.file(point))["found"]).correct
    confirmation = _confirmation(validation, asked)
    document = {
        "method": space.method,
        "seed": settings["seed"],
        "subsets": sweep.subsets,
        "reference": reference.document(),
        "trials": trials,
        "failed": failed,
        "points": _curves(space, trials, reference),
        "best": {key: winner[key] for key in ("id", "source", "method", "of", "round", "lambda", "objective")}
        | {key: winner[key] for key in ("accuracy", "n", "low", "high")}
        | {"fingerprint": fingerprint},
        "confirmation": confirmation,
    }
    write_json(context.out / "search.json", document)
    return {
        "lambda_best": plain(as_lambda(winner["lambda"])),
        "source": winner["source"],
        "validation_accuracy": winner["accuracy"],
        "fresh_accuracy": confirmation["fresh"]["accuracy"],
        "overfit": confirmation["overfit"],
        "fingerprint": fingerprint,
        "trials": len(trials),
        "failed_trials": len(failed),
    }


class TrialLog:
    """Trials as they end: on the screen, in MLflow, and as rows of search.json."""

    def __init__(self, context: Context, space: Space):
        self.context, self.space = context, space
        self.rows: dict[str, dict[str, Any]] = {}
        self.points: dict[str, Point] = {}
        self.waiting: set[str] = set()
        """Names of the rows that MLflow has not got yet."""
        self.recorded, self.count = time.monotonic(), len(context.run.points)

    def ended(self, config: dict, metrics: dict | None) -> None:
        """A trial has ended while others may still run; why one failed Tune tells at the end."""
        self.count += 1
        self.add(config, metrics, None)
        numbers = {key: metrics[key] for key in ("accuracy", "objective")} if metrics else {}
        self.context.run.log({"step": self.count, "steps": max(self.count, self.space.trials)} | numbers)
        if time.monotonic() - self.recorded > RECORDED_SECONDS:
            self.record()

    def add(self, config: dict, metrics: dict | None, error: str | None) -> None:
        """Note a trial. A point that Optuna draws again is the same trial, which may have got further."""
        point = self.space.point(config)
        chosen, name = self.space.named[point["source"]], identity(point)
        row = {"id": name, "source": source_label(point), "method": chosen.method, "of": list(chosen.of)}
        row |= {"round": chosen.round, "lambda": point["lambda"]}
        row |= {key: metrics[key] for key in MEASURED} if metrics else {"error": error}
        known = self.rows.get(name)
        if known is None or "error" in known or known["n"] < row.get("n", 0):
            self.rows[name], self.points[name] = row, point
            self.waiting.add(name)

    def record(self) -> None:
        """Send MLflow what it has not got."""
        self.context.run.trials([_run(row) for name, row in self.rows.items() if name in self.waiting])
        self.recorded, self.waiting = time.monotonic(), set()

    def in_order(self, points: list[Point]) -> None:
        """Sort the rows as the points are: trials end as it happens."""
        self.rows = {name: self.rows[name] for name in dict.fromkeys(map(identity, points))}

    @property
    def trials(self) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if "error" not in row]

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if "error" in row]


def _domain(settings: dict[str, Any]) -> tuple[Any, ...]:
    return settings["subject"], settings["domain"], settings["world_seed"]


def _items(domain: Domain, settings: dict[str, Any]) -> Items:
    """What every trial is measured on, in random order: subsets are the first so many."""
    wanted, rng = settings["search"], random.Random(f"search-{settings['seed']}")
    retention = retention_questions(settings["domain"], settings["world_seed"], wanted.retention_file)
    limits = (None, wanted.retention_questions, wanted.perplexity_documents)
    kinds = (domain.questions(1, "validation"), retention, domain.documents(1))
    return Items(*(rng.sample(kind, len(kind))[:limit] for kind, limit in zip(kinds, limits, strict=True)))


def _confirmation(validation: Sequence[bool], fresh: Sequence[bool]) -> dict[str, Any]:
    mean, low, high = independent_difference(fresh, validation)
    return {
        "validation": proportion(validation),
        "fresh": proportion(fresh),
        "difference": {"mean": mean, "low": low, "high": high},
        "overfit": high < 0,
    }


def _curves(space: Space, trials: list[dict[str, Any]], reference: Measurement) -> list[dict[str, Any]]:
    """λ curves: complete trials with one λ, and λ = 0 for every source. The weights of linear trials make no curve."""
    level = {key: reference.document()[key] for key in CURVE}
    points = [{"source": each.name, "lambda": 0.0} | level for each in space.candidates if each.method != LINEAR]
    for trial in trials:
        if trial["complete"] and trial["method"] != LINEAR and not isinstance(trial["lambda"], dict):
            points.append({key: trial[key] for key in ("source", "lambda", *CURVE)})
    return sorted(points, key=lambda point: (point["source"], point["lambda"]))


def _run(row: dict[str, Any]) -> dict[str, Any]:
    """A trial as MLflow has it."""
    lam = row["lambda"]
    lambdas = {f"lambda.{group}": each for group, each in lam.items()} if isinstance(lam, dict) else {"lambda": lam}
    metrics = {key: row[key] for key in ("objective", "accuracy", "perplexity", "n", "seconds") if row.get(key) is not None}
    if row.get("retention"):
        metrics["retention"] = row["retention"]["accuracy"]
    return {
        "id": row["id"],
        "name": f"{row['source']} {lambda_words(lam)}",
        "parameters": {"source": row["source"], "method": row["method"], **lambdas},
        "metrics": metrics,
        "status": "FAILED" if "error" in row else "FINISHED",
        "seconds": row.get("seconds", 0.0),
    }


def _every(failed: list[dict[str, Any]]) -> str:
    return f"every trial failed ({len(failed)}); first: {_failure(failed[0])}"


def _failure(row: dict[str, Any]) -> str:
    return f"{row['source']} at λ = {lambda_words(row['lambda'])}: {row['error']}"
