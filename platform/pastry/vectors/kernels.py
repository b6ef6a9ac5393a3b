"""The inner loops, compiled: float32 numbers of one block in, numbers and sums out.

bfloat16 is the upper half of a float32, so it travels here as uint16 and is widened and rounded by its bits. Sums run
in float64, in which a product of two float32 numbers is exact. Compiled once per machine and cached beside this file.
"""

import math

import numpy as np
from numba import njit

_EXPONENT = np.uint32(0x7F800000)
_UPPER_HALF = np.uint32(0xFFFF0000)
_HALF_STEP = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_SIXTEEN = np.uint32(16)
# Only the order of a float64 sum may change: that is what lets it run in vector registers.
_sums = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
_exact = njit(nogil=True, cache=True)


@_exact
def widen_bfloat16(stored, bits):
    """uint16[n] bfloat16 → uint32[n], the bits of the same numbers in float32."""
    for i in range(stored.size):
        bits[i] = np.uint32(stored[i]) << _SIXTEEN


@_exact
def has_non_finite(bits):
    """Whether any of the float32 numbers with these uint32[n] bits is NaN or infinite."""
    found = np.uint32(0)
    for i in range(bits.size):
        found |= np.uint32((bits[i] & _EXPONENT) == _EXPONENT)
    return found != 0


@_exact
def nearest_bfloat16(bits, stored):
    """Round finite float32 (uint32[n] bits) to bfloat16 (uint16[n]): to nearest, ties to even (IEEE 754)."""
    for i in range(bits.size):
        stored[i] = np.uint16((bits[i] + _HALF_STEP + ((bits[i] >> _SIXTEEN) & _ONE)) >> _SIXTEEN)


@_exact
def stochastic_bfloat16(bits, stored, key, first):
    """Round finite float32 to bfloat16 so that the expectation is exact; element i draws number first + i of stream `key`.

    A uniform 16-bit integer is added below the cut: the magnitude goes up with a probability equal to the fraction
    that would be lost, and numbers that bfloat16 holds stay. The stream is SplitMix64 (Steele, Lea, Flood, "Fast
    splittable pseudorandom number generators", OOPSLA 2014, figure 16), read by index, upper 16 bits.
    """
    for i in range(bits.size):
        stored[i] = np.uint16((bits[i] + (splitmix64(key, first + np.uint64(i)) >> np.uint64(48))) >> np.uint64(16))


@njit(nogil=True, cache=True, inline="always")
def splitmix64(key, index):
    """uint64 number `index` (uint64) of the SplitMix64 stream that begins at `key` (uint64)."""
    z = key + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_sums
def dots(a, b):
    """⟨a,b⟩, ⟨a,a⟩, ⟨b,b⟩ of two float32[n]."""
    ab, aa, bb = 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        ab += x * y
        aa += x * x
        bb += y * y
    return ab, aa, bb


def cosine_from_dots(ab: float, aa: float, bb: float) -> float | None:
    """⟨a,b⟩ / √(⟨a,a⟩⟨b,b⟩); None where either norm is zero, because no direction is defined."""
    if aa == 0 or bb == 0:
        return None
    return ab / (math.sqrt(aa) * math.sqrt(bb))


@_sums
def arrived(before, minus_d, after):
    """⟨moved, d⟩, ⟨d, d⟩ and ‖moved − d‖² for moved = after − before, all float32[n]; `minus_d` holds −d."""
    moved_d, d_d, missed = 0.0, 0.0, 0.0
    for i in range(before.size):
        moved, e = np.float64(after[i]) - np.float64(before[i]), np.float64(minus_d[i])
        moved_d -= moved * e
        d_d += e * e
        missed += (moved + e) * (moved + e)
    return moved_d, d_d, missed
