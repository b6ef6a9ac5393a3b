"""Intervals: of one accuracy, and of a paired difference."""

from __future__ import annotations

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
