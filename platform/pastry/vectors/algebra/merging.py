"""Several skill vectors into one: the formulas, on one block of each source at a time.

A method takes a list of float32 arrays of one shape, a block of each source, and gives one float32 array of that shape.
Sums run in float64 and are rounded once: the mean of n copies is the copy. A new method is one function and one line in
METHODS; its keyword-only parameters say what else it needs (see SETTINGS).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numba import njit

from pastry.errors import PastryError
from pastry.vectors.kernels import splitmix64

Vectors = Sequence[np.ndarray]
Blocks = Callable[[], Iterable[np.ndarray]]
"""Gives the float32[n] blocks of a tensor, from its beginning, every time it is called."""


def weighted_sum(vectors: Vectors, *, weights: Sequence[float]) -> np.ndarray:
    """Σ w_i·v_i: task arithmetic, Ilharco et al. 2023, arXiv 2212.04089."""
    return _float32(_total(np.multiply(v, w, dtype=np.float64) for v, w in zip(vectors, weights, strict=True)))


def mean(vectors: Vectors) -> np.ndarray:
    """(1/n)·Σ v_i: task arithmetic with the weights 1/n."""
    return _float32(_total(vectors) / len(vectors))


def consensus(vectors: Vectors, *, agree: int) -> np.ndarray:
    """The mean of all n where at least `agree` of them have the same sign, and 0 elsewhere; a zero has no sign.

    The mask is the AND-mask that Parascandolo et al. 2021, arXiv 2009.00329, put on the gradients of several environments.
    """
    return np.where(_agreed(vectors, agree), mean(vectors), np.float32(0))


def complement(vectors: Vectors, *, agree: int, of: str) -> np.ndarray:
    """What the consensus leaves out: the mean (`of` "mean") or v_1 (`of` "first"), with 0 where `consensus` keeps.

    A diagnostic: injected alone, it shows how much of a skill lies outside the consensus.
    """
    whole = mean(vectors) if of == "mean" else vectors[0]
    return np.where(_agreed(vectors, agree), np.float32(0), whole)


def ties(vectors: Vectors, *, thresholds: Sequence[np.float32]) -> np.ndarray:
    """TIES-Merging, Yadav et al. 2023, arXiv 2306.01708, algorithm 1: trim, elect the sign, disjoint mean.

    v̂_i is v_i where |v_i| ≥ threshold i, else 0; γ = sgn(Σ v̂_i), the sign with the larger total mass;
    the result is the mean of those v̂_i whose sign is γ, and 0 where the masses are equal.
    """
    trimmed = [np.where(np.abs(v) >= threshold, v, np.float32(0)) for v, threshold in zip(vectors, thresholds, strict=True)]
    elected = np.sign(_total(trimmed))
    agreeing = [np.sign(v) == elected for v in trimmed]
    chosen = _total(np.where(same, v, np.float32(0)) for v, same in zip(trimmed, agreeing, strict=True))
    return _float32(chosen / np.maximum(_total(agreeing), 1))


def dare(vectors: Vectors, *, weights: Sequence[float], drop: float, keys: Sequence[int], first: int) -> np.ndarray:
    """DARE, Yu et al. 2023, arXiv 2311.03099: drop and rescale, then task arithmetic: Σ w_i·m_i·v_i / (1 − drop).

    m_i is 0 with probability `drop`, else 1. Element j of a block that begins at element `first` of its tensor draws number
    first + j of the SplitMix64 stream of key i, so the mask does not depend on how tensors are cut into blocks.
    """
    kept = []
    for v, key in zip(vectors, keys, strict=True):
        mask = np.empty(v.size, np.bool_)
        _draw_kept(np.uint64(key), np.uint64(first), np.uint64(drop * 2**53), mask)
        kept.append(np.where(mask.reshape(v.shape), v, np.float32(0)))
    return weighted_sum(kept, weights=[w / (1 - drop) for w in weights])


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "sum": weighted_sum,
    "mean": mean,
    "consensus": consensus,
    "complement": complement,
    "ties": ties,
    "dare": dare,
}
SETTINGS = {"agree": "agree", "of": "of", "density": "thresholds", "drop": "drop", "seed": "keys"}
"""What a user can set, and the parameter of a method that follows from it.

`thresholds` are each source's magnitude threshold in the tensor at hand (`magnitude_threshold`), `keys` a random key for
each source, `first` the block's first element, `weights` the sources' weights; the others are the settings themselves.
"""


def parameters(method: str) -> set[str]:
    """What a method needs besides the vectors. Raises PastryError for an unknown one."""
    if method not in METHODS:
        raise PastryError(f"method {method!r} is unknown; wanted one of {', '.join(METHODS)}")
    given = inspect.signature(METHODS[method]).parameters.values()
    return {parameter.name for parameter in given if parameter.kind is parameter.KEYWORD_ONLY}


def complete_settings(method: str, n: int, given: dict[str, Any]) -> dict[str, Any]:
    """All settings of `method` for n sources: those `given` (None: not given) and the defaults of the others.

    Defaults: `agree` n, `of` "mean", `density` 0.2 (the paper's), `drop` 0.9 (the paper's), `seed` 0.
    Raises PastryError for an unknown method or setting, one that the method does not have, and a value out of range.
    """
    needed = parameters(method)
    settings = {"agree": n, "of": "mean", "density": 0.2, "drop": 0.9, "seed": 0}
    for name, value in given.items():
        if name not in SETTINGS:
            raise PastryError(f"setting {name!r} is unknown; wanted one of {', '.join(SETTINGS)}")
        if value is None:
            continue
        if SETTINGS[name] not in needed:
            users = ", ".join(other for other in METHODS if SETTINGS[name] in parameters(other))
            raise PastryError(f"--{name} is for {users}, the method is {method}; leave it out or choose another --method")
        settings[name] = value
    settings = {name: value for name, value in settings.items() if SETTINGS[name] in needed}
    allowed = {
        "agree": (lambda k: type(k) is int and 1 <= k <= n, f"a whole number from 1 to {n}, the number of skills"),
        "of": (lambda of: of in ("mean", "first"), "mean or first"),
        "density": (lambda share: 0 < share <= 1, "a share above 0 and at most 1, for instance 0.2"),
        "drop": (lambda p: 0 <= p < 1, "a probability of at least 0 and below 1, for instance 0.9"),
        "seed": (lambda seed: type(seed) is int, "a whole number"),
    }
    for name, value in settings.items():
        fits, wanted = allowed[name]
        if not fits(value):
            raise PastryError(f"--{name} is {value}; wanted {wanted}")
    return settings


def magnitude_threshold(blocks: Blocks, elements: int, density: float) -> np.float32:
    """The k-th largest |v| of a tensor, k = density·elements rounded and at least 1; exact, in two passes over its blocks.

    |v| ≥ threshold keeps k elements, and more where magnitudes are equal to the threshold. The bits of non-negative
    float32 numbers are ordered as the numbers are: the first pass counts their upper halves, the second the lower
    halves of those that share the upper half of the k-th. Memory: about 1 MB, whatever the tensor's size.
    """
    rank, prefix = max(1, math.floor(density * elements + 0.5)), 0
    for shift in (16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for block in blocks():
            _count_halves(block.view(np.uint32), np.uint64(shift), np.uint64(prefix), counts)
        at_least = np.cumsum(counts[::-1])[::-1]
        half = int(np.flatnonzero(at_least >= rank)[-1])
        rank -= int(at_least[half] - counts[half])
        prefix = prefix << 16 | half
    return np.uint32(prefix).view(np.float32)


def without_component(v: np.ndarray, u: np.ndarray, coefficient: float) -> np.ndarray:
    """v − c·u in float64; with c = ⟨v,u⟩/⟨u,u⟩ (`component`) it is orthogonal to u: one step of Gram–Schmidt."""
    return v - coefficient * u.astype(np.float64)


def scaled(v: np.ndarray, factor: float) -> np.ndarray:
    """factor·v, rounded to float32 once."""
    return v if v.dtype == np.float32 and factor == 1 else _float32(v * np.float64(factor))


def component(v_u: float, u_u: float) -> float:
    """c = ⟨v,u⟩/⟨u,u⟩, how much of u is in v; 0 where u is 0."""
    return v_u / u_u if u_u else 0.0


def _total(arrays: Iterable[np.ndarray]) -> np.ndarray:
    total: Any = 0.0
    for array in arrays:
        total = np.add(total, array, dtype=np.float64)
    return total


def _float32(values: np.ndarray) -> np.ndarray:
    # A number that does not fit becomes infinite, which whoever stores it refuses by name.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _agreed(vectors: Vectors, agree: int) -> np.ndarray:
    positive = np.sum([v > 0 for v in vectors], axis=0, dtype=np.int32)
    negative = np.sum([v < 0 for v in vectors], axis=0, dtype=np.int32)
    return np.maximum(positive, negative) >= agree


@njit(nogil=True, cache=True)
def _draw_kept(key, first, below, kept):
    """bool[n]: whether the upper 53 bits of number first + i of the stream `key` are at least `below` (all uint64)."""
    for i in range(kept.size):
        kept[i] = (splitmix64(key, first + np.uint64(i)) >> np.uint64(11)) >= below


@njit(nogil=True, cache=True)
def _count_halves(bits, shift, prefix, counts):
    """Count 16 bits, from bit `shift` up, of the magnitudes of float32 numbers (uint32[n] bits) that begin with `prefix`."""
    for i in range(bits.size):
        magnitude = np.uint64(bits[i]) & np.uint64(0x7FFFFFFF)
        if magnitude >> (shift + np.uint64(16)) == prefix:
            counts[(magnitude >> shift) & np.uint64(0xFFFF)] += 1
