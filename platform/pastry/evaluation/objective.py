"""Which point of a search is the best, and which cannot be bettered without losing something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pastry.config import Penalties
from pastry.evaluation.measure import Measurement


def objective(found: Measurement, reference: Measurement, penalties: Penalties) -> float:
    """Accuracy minus the weighted relative increase of perplexity and the weighted drop of retention, each at least 0.

    `reference`: the target alone, on the same items. What an early subset has no item of costs nothing there.
    """
    lost = 0.0
    if penalties.perplexity and found.losses:
        lost += penalties.perplexity * max(0.0, found.perplexity / reference.perplexity - 1)
    if penalties.retention and found.retained:
        lost += penalties.retention * max(0.0, _mean(reference.retained) - _mean(found.retained))
    return _mean(found.correct) - lost


def pareto(trials: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Whether a trial is on the front of accuracy (high), perplexity (low) and retention (high): no other complete one is at
    least as good in all three and better in one. A trial that was stopped early is never on it."""
    scores = [_scores(trial) for trial in trials]
    rivals = [score for score, trial in zip(scores, trials, strict=True) if trial["complete"]]
    return [
        trial["complete"] and not any(_dominates(rival, score) for rival in rivals)
        for trial, score in zip(trials, scores, strict=True)
    ]


def best(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The complete trial of the highest objective; ties go to the λ nearest the paper's 1, then to a single vector."""
    return max(
        (trial for trial in trials if trial["complete"]),
        key=lambda trial: (trial["objective"], -distance_to_one(trial["lambda"]), trial["method"] == "single"),
    )


def distance_to_one(lam: float | Mapping[str, float]) -> float:
    """|λ − 1|; of a λ by module group the largest."""
    return max(abs(each - 1) for each in (lam.values() if isinstance(lam, Mapping) else [lam]))


def _scores(trial: Mapping[str, Any]) -> tuple[float, ...]:
    retention = trial["retention"] and trial["retention"]["accuracy"]
    return tuple(score for score in (trial["accuracy"], _negative(trial["perplexity"]), retention) if score is not None)


def _negative(number: float | None) -> float | None:
    return None if number is None else -number


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
