"""Settings of the search: what is tried, how it is judged, and the ablation after it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, FiniteFloat, Tag, model_validator

from pastry.config.strict import Strict

ModuleGroup = Literal["attention", "mlp", "embeddings", "norms"]
LARGEST_GRID = 32
"""Points up to which `method: auto` tries every one."""


class LambdaRange(Strict):
    """Every λ from `low` to `high`."""

    low: FiniteFloat
    high: FiniteFloat
    log: bool = False
    """Draw its logarithm evenly; for a range over orders of magnitude."""

    @model_validator(mode="after")
    def _not_empty(self):
        if self.low >= self.high:
            raise ValueError(f"the range of λ is empty: low = {self.low:g} must be below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, found {self.low:g}")
        return self


def _list(lambdas: list[float]) -> list[float]:
    """In order and each once, without the 0 that is always measured."""
    for lam in lambdas:
        if not math.isfinite(lam):
            raise ValueError(f"λ must be a finite number, found {lam}")
    if not set(lambdas) - {0.0}:
        raise ValueError("no λ to try; give at least one that is not 0, or {low, high}")
    return sorted(set(lambdas) - {0.0})


Lambdas = Annotated[
    Annotated[list[float], AfterValidator(_list), Tag("list")] | Annotated[LambdaRange, Tag("range")],
    Discriminator(lambda found: "range" if isinstance(found, dict | LambdaRange) else "list"),
]


class RegistrySelection(Strict):
    """Skill vectors from the registry that are tried beside the run's own; looked up when the search starts."""

    skills: list[Annotated[str, Field(pattern="^models:/")]] = []
    """models:/name@alias or models:/name/3; each must fit the target. Empty: every registered skill that fits it …"""
    tags: dict[str, str] = {}
    """… and has these tags."""

    @model_validator(mode="after")
    def _either(self):
        if self.skills and self.tags:
            raise ValueError("give skills (a list of URIs) or tags, not both")
        return self


class EarlyStopping(Strict):
    """ASHA (Li et al. 2020, arXiv 1810.05934) over nested subsets of the questions."""

    factor: int = Field(3, ge=2)
    """Each subset is so many times the one before, and the best 1/factor of the trials go on to it."""
    smallest: int = Field(16, ge=1)
    """Questions in the first subset, at least."""


class Penalties(Strict):
    """Objective = accuracy − perplexity · (relative increase) − retention · (drop); an improvement is not rewarded."""

    perplexity: float = Field(0.0, ge=0, allow_inf_nan=False)
    retention: float = Field(0.0, ge=0, allow_inf_nan=False)


class SearchSettings(Strict):
    """Which source, which λ: judged on the target's validation questions, confirmed on its test questions."""

    method: Literal["auto", "optuna", "grid", "random"] = "auto"
    """auto: every point where there are at most 32, else Optuna (TPE), which learns from the trials so far."""
    lambdas: Lambdas = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
    """A list, or {low, high, log}. λ = 0, the target itself, is always measured."""
    groups: list[ModuleGroup] = []
    """Module groups that get a λ of their own from `lambdas`; all other modules share one."""
    rounds: Literal["last", "all"] | list[int] = "last"
    """Which rounds' vectors of the run's own sources are tried."""
    combinations: list[str] = []
    """Methods of `pastry vector combine`, and linear (weights are searched, too), over the sources' last vectors and those of
    the registry. The consensus is always tried where there are two or more."""
    registry: RegistrySelection | None = None
    trials: int = Field(32, gt=0)
    """Of optuna and random; a grid has its own number."""
    seed: int | None = None
    """Of optuna and random; null: the run's. With more than one trial at a time Optuna's choices also depend on which ends
    first."""
    early_stopping: EarlyStopping | Literal["auto"] | None = "auto"
    """auto: for optuna and random; a grid's λ curves want every point. null: every trial asks all questions."""
    penalties: Penalties = Penalties()
    perplexity_documents: int = Field(24, ge=0)
    """Of the target's documents, on which every trial's perplexity is taken; 0: not measured."""
    retention_questions: int = Field(48, ge=0)
    """Asked in every trial about what the base knew before; 0: not measured."""
    retention_file: Path | None = None
    """JSON lines {"question", "answer"}; null: pre-training's questions, where the domain has them."""
    concurrency: int | Literal["auto"] = "auto"
    """Trials at a time; auto: one a worker."""

    @model_validator(mode="after")
    def _consistent(self):
        if self.method == "grid" and isinstance(self.lambdas, LambdaRange):
            raise ValueError("method: grid needs a list of lambdas, a range has no end of points; or use optuna or random")
        if self.method == "grid" and "linear" in self.combinations:
            raise ValueError("method: grid cannot try linear, whose weights are continuous; use optuna or random")
        if len(set(self.groups)) < len(self.groups):
            raise ValueError(f"groups repeat: {self.groups}")
        for measure, key in (("perplexity", "perplexity_documents"), ("retention", "retention_questions")):
            if getattr(self.penalties, measure) and not getattr(self, key):
                raise ValueError(f"penalties.{measure} weighs what {key} = 0 does not measure")
        return self


class AblationSettings(Strict):
    """Where does the skill live? Each module group, and each third of the layers, injected alone and left out."""

    questions: int | None = Field(None, gt=0)
    """Of the target's test split, at most; null: all."""
