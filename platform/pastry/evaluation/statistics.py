"""Intervals of an accuracy and of a paired difference; whether several models differ on the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000


def wilson(correct: Sequence[bool]) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    interval = stats.binomtest(sum(correct), len(correct)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(a: Sequence[bool], b: Sequence[bool], seed: int = 0) -> tuple[float, float, float]:
    """Mean of a − b over the same questions, with its 95 % percentile-bootstrap interval: (mean, low, high)."""
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    draws = np.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.quantile(differences[draws].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(differences.mean()), float(low), float(high)


def cochran_q(correct: Sequence[Sequence[bool]]) -> float:
    """p that models are equally good, from bool[models, questions] on the same questions (W. G. Cochran, Biometrika 37, 1950).

    1.0 where they answer every question alike.
    """
    answers = np.asarray(correct, dtype=float)
    models, total = len(answers), answers.sum()
    per_question = answers.sum(axis=0)
    disagreement = models * total - (per_question**2).sum()
    if disagreement == 0:
        return 1.0
    q = (models - 1) * (models * (answers.sum(axis=1) ** 2).sum() - total**2) / disagreement
    return float(stats.chi2.sf(q, models - 1))


def independent_difference(a: Sequence[bool], b: Sequence[bool]) -> tuple[float, float, float]:
    """Difference a − b of the proportions of two independent samples, with its 95 % interval: (mean, low, high).

    Newcombe's hybrid score interval, from the Wilson intervals of both (R. G. Newcombe, Statistics in Medicine 17, 1998,
    873–890, method 10).
    """
    p, q = sum(a) / len(a), sum(b) / len(b)
    (a_low, a_high), (b_low, b_high) = wilson(a), wilson(b)
    return p - q, p - q - math.hypot(p - a_low, b_high - q), p - q + math.hypot(a_high - p, q - b_low)
