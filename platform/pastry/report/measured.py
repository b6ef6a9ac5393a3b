"""What the search, ablation and matrix stages measured, as their JSON files say it; intervals are of 95 %."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Lambda = float | dict[str, float]
"""One number, or one per module group."""


class Finding(BaseModel):
    """Keys that are not named here are the stages' own; `lambda`, a keyword in Python, is `lambda_`."""

    model_config = ConfigDict(populate_by_name=True)


class Difference(Finding):
    """A difference of accuracies with its interval."""

    mean: float
    low: float
    high: float


class Accuracy(Finding):
    """Of n questions."""

    n: int
    accuracy: float
    low: float
    high: float


class Reference(Accuracy):
    """The target alone, λ = 0, on validation questions."""

    perplexity: float | None = None
    """Of the target's documents."""
    retention: Accuracy | None = None
    """On questions that have nothing to do with the target."""


class LambdaPoint(Accuracy):
    """Validation accuracy of one source's vector at λ."""

    source: str
    lambda_: float = Field(alias="lambda")


class Trial(Reference):
    """One trial of the search."""

    source: str
    method: str
    round: int | None = None
    lambda_: Lambda = Field(alias="lambda")
    objective: float
    complete: bool
    """Whether it saw every question; False: stopped early."""
    pareto: bool
    """Whether no other trial is at least as good in everything and better in something."""


class Best(Accuracy):
    """The winner."""

    source: str
    of: list[str] = []
    """The vectors that were combined; of a single one, its own name."""
    lambda_: Lambda = Field(alias="lambda")


class Confirmation(Finding):
    """The winner on questions that the search never saw."""

    validation: Accuracy
    fresh: Accuracy
    difference: Difference
    """fresh − validation."""
    overfit: bool
    """Whether the whole interval of the difference lies below 0."""


class Search(Finding):
    """search.json. Runs of older versions have only points and best."""

    reference: Reference | None = None
    trials: list[Trial] = []
    points: list[LambdaPoint]
    best: Best
    confirmation: Confirmation | None = None

    @property
    def level(self) -> Accuracy | None:
        """The target without any vector."""
        return self.reference or next((point for point in self.points if point.lambda_ == 0), None)

    @property
    def front(self) -> list[Trial]:
        """The complete trials on the Pareto front, the most accurate first."""
        return sorted((t for t in self.trials if t.pareto and t.complete), key=lambda trial: -trial.accuracy)

    def won(self, trial: Trial | LambdaPoint) -> bool:
        """Whether it is the winner's."""
        return (trial.source, trial.lambda_) == (self.best.source, self.best.lambda_)


class GroupScore(Finding):
    """Accuracy on test questions, and the paired gain over the target alone."""

    accuracy: float
    low: float
    high: float
    gain: Difference


class Group(Finding):
    """A module group injected alone, and left out."""

    group: str
    tensors: int
    norm_share: float
    """Of ‖v‖²."""
    only: GroupScore
    without: GroupScore


class Ablation(Finding):
    """ablation.json: where the winner lives."""

    source: str
    lambda_: Lambda = Field(alias="lambda")
    n: int
    full: GroupScore
    groups: list[Group]


class Gain(Difference):
    """Of a source's vector on a target's test questions, paired."""

    n: int
    before: float
    after: float


class Agreement(Finding):
    """Rank correlation of a signal with the measured gains, over n pairs of source and target."""

    rho: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int
    verdict: Literal["agreed", "no signal here", "opposite"]
    reason: str = ""
    """The verdict's, in words."""


class Signal(Finding):
    """What was known of each pair before any RL."""

    name: str
    meaning: str
    values: dict[str, dict[str, float]]
    absent: dict[str, str] = {}
    """Source → why it has no value."""
    agreement: Agreement


class Ranked(Finding):
    """A source's places: 1 is the best."""

    source: str
    predicted_rank: int | None
    measured_rank: int
    mean_gain: float


class Matrix(Finding):
    """matrix.json: every source into every target."""

    lambda_: float = Field(alias="lambda")
    sources: list[str]
    targets: list[str]
    gains: dict[str, dict[str, Gain]]
    """Source → target → gain; of a source in its own domain, which it was trained on, for reference."""
    sources_differ_p: dict[str, float | None] = {}
    """Target → p of Cochran's Q: whether the sources differ there at all."""
    signals: list[Signal]
    ranking: list[Ranked]
