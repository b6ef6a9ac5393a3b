"""What rounding took from a vector before Pastry saw it: its end and its start may lie on a coarse grid, bf16 files above all.

An update N(0, σ²) of a weight on a grid of step s, rounded to nearest, keeps on average
R(σ/s) = (2s/σ) Σ_{k≥1} φ((k − ½) s/σ) of itself, and leaves the weight as it was with probability erf(s / (2√2 σ)). The
share of unchanged weights is in the files, so σ, R, and the λ that makes up for it, follow from them. Derived and measured
in docs/precision.md; the step of a weight in [2^e, 2^(e+1)) with m mantissa bits is 2^(e−m).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.vectors import kernels

FINEST_GRID = 12
"""Mantissa bits from which on a file counts as unrounded: bfloat16 has 7, float16 10, float32 23."""
SAMPLE = 17
"""Every 17th weight is looked at: more do not change the estimate. Prime, so that no row or column is favoured."""
_EXPONENT_BIAS = 127


class Birth(BaseModel):
    """What to expect of a difference of rounded files."""

    model_config = ConfigDict(extra="forbid")

    mantissa_bits: int
    unchanged: FiniteFloat
    """Share of the weights that are the same in both files."""
    update_rms: FiniteFloat
    """Estimated, of the update before it was rounded."""
    on_grid: bool
    """RL started from the rounded file. False: both ends were rounded afterwards, which adds noise but loses no size."""
    realised_ratio: FiniteFloat
    """Estimated ⟨v, true⟩ / ⟨true, true⟩."""
    cosine: FiniteFloat
    """Estimated, of v to the true update."""


    @property
    def lossy(self) -> bool:
        """Whether it is worth a warning: over 1 % of the size is gone, or the direction is off by more than noise hides."""
        return self.realised_ratio < 0.99 or self.cosine < 0.95

    def advice(self) -> str:
        """What it means for whoever wants to inject the vector."""
        same = f"{100 * self.unchanged:.0f} % of the weights are the same in both"
        born = f"born from files with {self.mantissa_bits} mantissa bits ({same})"
        if not self.lossy:
            return f"{born}: rounding took next to nothing"
        remedy = "to have all of it, save RL's step 0 and its end from float32 master weights and extract again"
        if not self.on_grid:
            noise = f"rounding noise leaves a cosine of about {self.cosine:.2f} to the true update"
            return f"{born}: its size is kept, but {noise}; {remedy}"
        return (
            f"WARNING: {born}: about {100 * self.realised_ratio:.0f} % of the update is left (cosine {self.cosine:.2f}), "
            f"so start the search for λ at {1 / self.realised_ratio:.2g} and go up from 1; {remedy}"
        )


def look(start: np.ndarray, end: np.ndarray, first: int) -> tuple[np.ndarray, int]:
    """Of float32 blocks beginning at element `first`: int64[512, 2] weights and unchanged weights by kind of place, used bits.

    A kind is 2·exponent + (1 if the weight is a power of two): these say which steps of the grid lie beside a weight.
    """
    offset = -first % SAMPLE
    return kernels.place_counts(start[offset::SAMPLE].view(np.uint32), end[offset::SAMPLE].view(np.uint32))


def sums(looks: Iterable[tuple[np.ndarray, int]], elements: int, norm: float) -> dict[str, Any] | None:
    """What one tensor contributes to `birth`, from its blocks' looks; None if its files are not rounded, or too few."""
    counts, used = np.zeros((512, 2), np.int64), 0
    for block, bits in looks:
        counts += block
        used |= bits
    mantissa_bits = 23 - ((used & -used).bit_length() - 1) if used else 0
    kinds = np.flatnonzero(counts[:, 0])
    if mantissa_bits > FINEST_GRID or not len(kinds):
        return None
    weights, unchanged = counts[kinds].T
    up = np.exp2(kinds // 2 - _EXPONENT_BIAS - mantissa_bits)
    steps = np.stack([up, np.where(kinds % 2, up / 2, up)])  # away from zero, towards it

    def mean(law: Callable, sigma: float) -> float:
        return float(weights @ law(sigma / steps).mean(0) / weights.sum())

    observed = unchanged.sum() / weights.sum()
    found: dict[str, Any] = {"bits": mantissa_bits, "weights": int(weights.sum()), "unchanged": int(unchanged.sum())}
    logs = []
    for law, key in ((_unchanged, "energy"), (_unchanged_dither, "dither")):
        sigma = _solve(lambda sigma, law=law: mean(law, sigma), observed, steps, int(weights.sum()))
        found[key] = elements * sigma**2
        if key == "energy":
            found["arrived"] = found[key] * mean(_kept, sigma) if sigma else 0.0
        stays = np.clip(law(sigma / steps).mean(0), 1e-6, 1 - 1e-6)
        logs.append(float(unchanged @ np.log(stays) + (weights - unchanged) @ np.log1p(-stays)))
    return found | {"evidence": logs[0] - logs[1], "elements": elements, "squares": norm**2}


def birth(tensors: Iterable[dict[str, Any] | None]) -> Birth | None:
    """The whole vector's, from its tensors' `sums`; None if one was not rounded, or if nothing changed at all."""
    found = list(tensors)
    if not found or any(tensor is None for tensor in found):
        return None
    total = {key: math.fsum(tensor[key] for tensor in found) for key in found[0]}
    if total["energy"] == 0 or total["squares"] == 0:
        return None
    on_grid = total["evidence"] >= 0
    ratio = total["arrived"] / total["energy"] if on_grid else 1.0
    estimate = total["arrived"] / math.sqrt(total["energy"] * total["squares"])
    cosine = estimate if on_grid else math.sqrt(total["dither"] / total["squares"])
    return Birth(
        mantissa_bits=max(tensor["bits"] for tensor in found),
        unchanged=total["unchanged"] / total["weights"],
        update_rms=math.sqrt(total["energy" if on_grid else "dither"] / total["elements"]),
        on_grid=on_grid,
        realised_ratio=ratio,
        cosine=min(1.0, cosine),
    )


def _kept(x: np.ndarray) -> np.ndarray:
    """R of x = σ/s."""
    x = np.clip(x, 1e-9, 4.0)  # beyond that nothing is lost
    k = np.arange(1, 60).reshape(-1, *[1] * x.ndim) - 0.5
    return (np.exp(-((k / x) ** 2) / 2)).sum(0) * 2 / (x * math.sqrt(2 * math.pi))


def _unchanged(x: np.ndarray) -> np.ndarray:
    """Share of weights on the grid that an update of RMS x steps leaves as they are."""
    from scipy.special import erf

    return erf(1 / (2 * math.sqrt(2) * np.clip(x, 1e-9, None)))


def _unchanged_dither(x: np.ndarray) -> np.ndarray:
    """The same where the weights lay anywhere before both ends were rounded: 1 − E min(1, |update| / step)."""
    from scipy.special import erf

    x = np.clip(x, 1e-9, None)
    return erf(1 / (math.sqrt(2) * x)) + x * math.sqrt(2 / math.pi) * np.expm1(-1 / (2 * x**2))


def _solve(share: Callable[[float], float], observed: float, steps: np.ndarray, weights: int) -> float:
    """The σ for which `share`, which falls with it, is the observed share of unchanged weights; 0 where every weight is."""
    from scipy.optimize import brentq

    if observed >= 1:
        return 0.0
    observed = max(observed, 0.5 / weights)
    low, high = math.log(steps.min()) - 5, math.log(steps.max()) + 15
    return math.exp(brentq(lambda log: share(math.exp(log)) - observed, low, high))
