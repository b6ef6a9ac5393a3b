"""Did a prediction rank skill sources as the measured gains rank them?

The question is always asked for one target: which source for it? So ρ is Spearman's within a target, and the main number
its mean over targets, each weighted by its sources − 1: the inverse of ρ's variance where nothing is related.

A source's vector is the same in every target, so targets are no independent repeats. Sources are the unit of both p and
interval, whatever the number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, permutations, product

import numpy as np
from pydantic import BaseModel
from scipy import stats

from pastry.evaluation.statistics import CONFIDENCE

Table = Mapping[str, Mapping[str, float]]
"""Source → target → value; a pair may be missing."""
PERMUTATIONS = 2_000
"""More than these are drawn instead of counted out."""
ALPHA = 1 - CONFIDENCE


class Agreement(BaseModel):
    """Of predicted and measured values."""

    rho: float | None
    """None where no target has two sources whose values differ in both."""
    low: float | None
    high: float | None
    """95 % interval; None for fewer than four sources."""
    p: float | None
    n: int
    """Pairs of source and target."""
    verdict: str
    """agreed, no signal here, or opposite."""
    reason: str
    """The verdict's, in words."""
    targets: dict[str, float | None]
    """ρ within each target."""


def agreement(runs: Sequence[tuple[Table, Table]]) -> Agreement:
    """Of (predicted, measured) tables; several runs have sources of their own, which are never compared with one another's.

    p: two-sided, over permutations of whole sources within a run (all of them up to `PERMUTATIONS`, else so many drawn).
    Interval: Fisher's z with Bonett and Wright's variance (1 + ρ²/2) / (n − 3) (Psychometrika 65, 2000), n − 3 summed over
    runs with n their sources; ρ is taken no nearer to ±1 than half the smallest step that ρ of n sources can make.
    """
    arrays = [_arrays(*run) for run in runs]
    columns = [rho for predicted, measured, _ in arrays for rho in _columns(predicted, measured)]
    names = [name if len(runs) == 1 else f"{i}/{name}" for i, (_, _, names) in enumerate(arrays, 1) for name in names]
    pairs = sum(int((np.isfinite(predicted) & np.isfinite(measured)).sum()) for predicted, measured, _ in arrays)
    found = {"n": pairs, "targets": dict(zip(names, (rho for rho, _ in columns), strict=True))}
    rho = _mean(columns)
    if rho is None:
        nothing = {"rho": None, "low": None, "high": None, "p": None, "verdict": "no signal here"}
        return Agreement(**found, **nothing, reason=_undefined(arrays))
    sources = [len(predicted) for predicted, _, _ in arrays]
    extreme = [abs(other) >= abs(rho) - 1e-9 for other in _permuted(arrays, sources)]
    p = sum(extreme) / len(extreme)
    verdict = "no signal here" if p >= ALPHA else "agreed" if rho > 0 else "opposite"
    least = 2 / math.prod(map(math.factorial, sources))
    if least >= ALPHA:
        reason = f"{sum(sources)} sources cannot show agreement: p is at least {least:.2g} whatever their order"
    else:
        reason = f"p = {p:.2g} over permutations of the sources"
    low, high = _interval(rho, sources)
    return Agreement(**found, rho=rho, low=low, high=high, p=p, verdict=verdict, reason=reason)


def within_targets(table: Table) -> dict[str, dict[str, float]]:
    """Each value's rank among its target's sources, ties shared, as a share in 0..1: the highest is the best."""
    ranked: dict[str, dict[str, float]] = {source: {} for source in table}
    for target in dict.fromkeys(target for row in table.values() for target in row):
        there = [source for source, row in table.items() if target in row]
        for source, rank in zip(there, stats.rankdata([table[source][target] for source in there]), strict=True):
            ranked[source][target] = float(rank - 0.5) / len(there)
    return ranked


def combined(tables: Iterable[Table]) -> dict[str, dict[str, float]]:
    """Mean of several signals' ranks within each target, all with the same weight."""
    ranked = [within_targets(table) for table in tables]
    pairs = [(source, target) for source, row in ranked[0].items() for target in row]
    result: dict[str, dict[str, float]] = {source: {} for source in ranked[0]}
    for source, target in pairs:
        result[source][target] = float(np.mean([each[source][target] for each in ranked]))
    return result


def places(table: Table) -> dict[str, int]:
    """Source → its place, 1 the best, by its mean over targets; equals share a place. Give it ranks within targets: gains of
    targets with different room do not compare."""
    standing = {source: np.mean(list(row.values())) for source, row in table.items() if row}
    order = stats.rankdata([-round(value, 9) for value in standing.values()], method="min")
    return dict(zip(standing, map(int, order), strict=True))


def _arrays(predicted: Table, measured: Table) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """float[sources, targets] of both, NaN for a missing pair, and the targets' names."""
    targets = list(dict.fromkeys(target for row in measured.values() for target in row))
    sources = [source for source in measured if any(target in measured[source] for target in targets)]
    tables = (
        np.array([[table.get(source, {}).get(target, math.nan) for target in targets] for source in sources], dtype=float)
        for table in (predicted, measured)
    )
    return *tables, targets


def _columns(predicted: np.ndarray, measured: np.ndarray) -> Iterator[tuple[float | None, int]]:
    """(ρ, its weight) of each target; None where either side does not vary."""
    for x, y in zip(predicted.T, measured.T, strict=True):
        both = np.isfinite(x) & np.isfinite(y)
        x, y = stats.rankdata(x[both]), stats.rankdata(y[both])
        varies = len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
        yield (float(np.corrcoef(x, y)[0, 1]) if varies else None), len(x) - 1


def _mean(columns: Iterable[tuple[float | None, int]]) -> float | None:
    defined = np.array([(rho, weight) for rho, weight in columns if rho is not None])
    return float(np.average(defined[:, 0], weights=defined[:, 1])) if len(defined) else None


def _permuted(arrays: list[tuple[np.ndarray, np.ndarray, list[str]]], sources: list[int]) -> Iterator[float]:
    """The mean ρ of every reordering of the predicted rows within their runs, the given order among them."""
    orders: Iterable[Sequence[Sequence[int]]] = product(*(permutations(range(n)) for n in sources))
    if math.prod(map(math.factorial, sources)) > PERMUTATIONS:
        rng, given = np.random.default_rng(0), [range(n) for n in sources]
        orders = chain([given], ([rng.permutation(n) for n in sources] for _ in range(PERMUTATIONS - 1)))
    for order in orders:
        columns = (_columns(x[list(rows)], y) for rows, (x, y, _) in zip(order, arrays, strict=True))
        rho = _mean(column for each in columns for column in each)
        yield 0.0 if rho is None else rho


def _interval(rho: float, sources: list[int]) -> tuple[float | None, float | None]:
    known = [n for n in sources if n > 3]
    if not known:
        return None, None
    step = 12 / (max(known) * (max(known) ** 2 - 1))
    z = math.atanh(max(-1 + step / 2, min(1 - step / 2, rho)))
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + rho**2 / 2) / sum(n - 3 for n in known))
    return math.tanh(z - half), math.tanh(z + half)


def _undefined(arrays: list[tuple[np.ndarray, np.ndarray, list[str]]]) -> str:
    if not any(np.isfinite(predicted).any() for predicted, _, _ in arrays):
        return "no value: the signal does not apply to these sources"
    if max(len(predicted) for predicted, _, _ in arrays) < 2:
        return "one source: there is nothing to rank"
    still = all(np.ptp(column[np.isfinite(column)]) == 0 for x, _, _ in arrays for column in x.T if np.isfinite(column).any())
    return "the signal is the same for all sources of a target" if still else "the gain is the same for all sources of a target"
