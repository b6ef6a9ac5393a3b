"""From stored numbers to float32 and back: exact widening, and one rounding at the end.

A block is what is read, computed, rounded, digested and written at a time: up to BLOCK consecutive elements of one tensor.
"""

import hashlib
import threading
from collections.abc import Hashable, Iterator

import numpy as np

from pastry.errors import PastryError
from pastry.vectors import kernels

FLOAT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16), "float16": np.dtype(np.float16)}
"""The dtypes that weights can be computed and stored in, and what holds them in memory: bfloat16 as its bits."""
BLOCK = 1 << 19
"""Elements: 2 MB in float32, so that all operands of a block stay in the processor's cache."""


def check_float_dtype(name: str) -> None:
    """Raise PastryError if `name` is not a dtype that weights can be computed and stored in."""
    if name not in FLOAT_DTYPES:
        raise PastryError(f"dtype {name!r} is not supported; wanted one of {', '.join(FLOAT_DTYPES)}")


def block_ranges(elements: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of a tensor's blocks; a tensor without elements has none."""
    for start in range(0, elements, BLOCK):
        yield start, min(start + BLOCK, elements)


class Scratch(threading.local):
    """Each thread's own buffers, reused from block to block: fresh memory would cost more than the arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, np.ndarray] = {}

    def __call__(self, purpose: Hashable, dtype: np.dtype | type, elements: int) -> np.ndarray:
        """An uninitialised array `elements` long; the same memory for the same purpose."""
        dtype = np.dtype(dtype)
        buffer = self._buffers.get(purpose)
        if buffer is None or buffer.nbytes < elements * dtype.itemsize:
            buffer = self._buffers[purpose] = np.empty(elements * dtype.itemsize, np.uint8)
        return buffer[: elements * dtype.itemsize].view(dtype)


def widen(
    stored: np.ndarray,
    scratch: np.ndarray,
    where: str,
    shape: tuple[int, ...],
    start: int,
    advice: str = "repair it or make it again",
) -> np.ndarray:
    """`stored` (a block in any of FLOAT_DTYPES) as float32, exactly: itself, or in the float32 array `scratch`.

    NaN or Inf is a PastryError naming `where` and the index in the tensor, of which the block begins at element `start`.
    """
    values = stored if stored.dtype == np.float32 else scratch
    bits = values.view(np.uint32)
    if stored.dtype == np.uint16:
        non_finite = kernels.widen_bfloat16(stored, bits)
    else:
        if values is not stored:
            np.copyto(values, stored)
        non_finite = kernels.has_non_finite(bits)
    if non_finite:
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        index = [int(i) for i in np.unravel_index(start + first, shape)]
        raise PastryError(f"{where} is {values[first]} at index {index}; {advice}")
    return values


def round_to(values: np.ndarray, out: np.ndarray, start: int, key: int | None = None) -> np.ndarray:
    """float32 `values` rounded to the dtype of `out`, in `out`: to nearest, ties to even, or with a `key` stochastically.

    Stochastic rounding is for bfloat16; its bits depend on `key` and the element's position in its tensor alone, of
    which the block begins at element `start`. A number that does not fit becomes infinite, which `widen` refuses.
    """
    if out.dtype != np.uint16:
        with np.errstate(over="ignore"):
            np.copyto(out, values, casting="same_kind")
    elif key is None:
        kernels.nearest_bfloat16(values.view(np.uint32), out)
    else:
        kernels.stochastic_bfloat16(values.view(np.uint32), out, np.uint64(key), np.uint64(start))
    return out


def overflow_advice(dtype: str) -> str:
    """What `widen` is to say of numbers that `round_to` made infinite."""
    return f"the value does not fit {dtype}; use a wider --dtype or a smaller λ"


def derive_key(seed: int, name: str) -> int:
    """A 63-bit key for the tensor `name`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
