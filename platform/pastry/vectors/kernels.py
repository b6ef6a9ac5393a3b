"""The inner loops, compiled: float32 numbers of one block in, numbers and sums out.

bfloat16 is the upper half of a float32, so it travels here as uint16 and is widened and rounded by its bits. Sums run
in float64, in which a product of two float32 numbers is exact. Compiled once per machine and cached beside this file.
"""

import math

import numpy as np
from numba import njit

_EXPONENT = np.uint32(0x7F800000)
_HALF_STEP = np.uint32(0x7FFF)
_ONE = np.uint32(1)
_SIXTEEN = np.uint32(16)
_exact = njit(nogil=True, cache=True)
# Only the order in which a float64 sum is added up may change: that is what lets it run in vector registers.
_sums = njit(nogil=True, cache=True, fastmath={"reassoc"})
_part = njit(nogil=True, inline="always")


@_part
def _is_non_finite(bits):
    return np.uint32((bits & _EXPONENT) == _EXPONENT)


@_part
def _nearest(bits):
    """The upper half of the float32 with these bits, rounded to nearest, ties to even (IEEE 754)."""
    return np.uint16((bits + _HALF_STEP + ((bits >> _SIXTEEN) & _ONE)) >> _SIXTEEN)


@_part
def _stochastic(bits, key, index):
    """The upper half, after a uniform 16-bit integer was added to the lower one: up with probability lower half / 2^16."""
    return np.uint16((np.uint64(bits) + (splitmix64(key, index) >> np.uint64(48))) >> np.uint64(16))


@_part
def splitmix64(key, index):
    """uint64 number `index` (uint64) of the SplitMix64 stream that begins at `key` (uint64).

    Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014, figure 16, read by index.
    """
    z = key + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_exact
def widen_bfloat16(stored, bits):
    """uint16[n] bfloat16 → uint32[n], the same numbers' bits in float32. Gives whether one is NaN or infinite."""
    found = np.uint32(0)
    for i in range(stored.size):
        wide = np.uint32(np.uint32(stored[i]) << _SIXTEEN)
        bits[i] = wide
        found |= _is_non_finite(wide)
    return found != 0


@_exact
def has_non_finite(bits):
    """Whether any of the float32 numbers with these uint32[n] bits is NaN or infinite."""
    found = np.uint32(0)
    for i in range(bits.size):
        found |= _is_non_finite(bits[i])
    return found != 0


@_exact
def nearest_bfloat16(bits, stored):
    """Round finite float32 (uint32[n] bits) to bfloat16 (uint16[n]): to nearest, ties to even."""
    for i in range(bits.size):
        stored[i] = _nearest(bits[i])


@_exact
def stochastic_bfloat16(bits, stored, key, first):
    """Round finite float32 to bfloat16 so that the expectation is exact; element i draws number first + i of stream `key`.

    Numbers that bfloat16 holds stay as they are.
    """
    for i in range(bits.size):
        stored[i] = _stochastic(bits[i], key, first + np.uint64(i))


@_exact
def subtract_scaled(total, v, scale):
    """total −= scale·v in float32[n]: the product is rounded before it is subtracted, on every processor."""
    for i in range(total.size):
        total[i] -= scale * v[i]


@_sums
def subtract_to_nearest_bfloat16(before, minus_d, stored):
    """before − minus_d (float32[n]), rounded to bfloat16 (uint16[n]); gives `arrived` of it, and whether it overflowed."""
    moved_d, d_d, missed, found = 0.0, 0.0, 0.0, np.uint32(0)
    for i in range(before.size):
        rounded = _nearest(np.float32(before[i] - minus_d[i]).view(np.uint32))
        stored[i] = rounded
        wide = np.uint32(np.uint32(rounded) << _SIXTEEN)
        found |= _is_non_finite(wide)
        moved, e = np.float64(wide.view(np.float32)) - np.float64(before[i]), np.float64(minus_d[i])
        moved_d -= moved * e
        d_d += e * e
        missed += (moved + e) * (moved + e)
    return (moved_d, d_d, missed), found != 0


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
def square_and_zeros(v):
    """⟨v,v⟩ and the number of zeros in float32[n]."""
    square, zeros = 0.0, 0
    for i in range(v.size):
        square += np.float64(v[i]) * np.float64(v[i])
        zeros += v[i] == 0
    return square, zeros


@_exact
def not_restored_bfloat16(start, v, end):
    """In how many places start + v (float32[n]), rounded to nearest, is not the bfloat16 `end` (uint16[n]) bit for bit."""
    count = 0
    for i in range(v.size):
        # θ − (0 − v) leaves a −0.0 of θ as it is where v is zero: −0.0 + 0.0 would be 0.0.
        restored = np.float32(start[i] - np.float32(np.float32(0) - v[i]))
        count += _nearest(restored.view(np.uint32)) != end[i]
    return count


@_exact
def not_restored_float32(start, v, end):
    """In how many places start + v (float32[n]) is not the float32 with the uint32[n] bits `end`."""
    count = 0
    for i in range(v.size):
        restored = np.float32(start[i] - np.float32(np.float32(0) - v[i]))
        count += restored.view(np.uint32) != end[i]
    return count


@_exact
def place_counts(start, end):
    """int64[512, 2]: weights, and those the same in `end`, by 2·exponent + (power of two) of `start`; mantissa bits in use.

    Both are uint32[n] bits of float32. Zeros and subnormal numbers are left out of the counts.
    """
    counts, used = np.zeros((512, 2), np.int64), np.uint32(0)
    for i in range(start.size):
        used |= (start[i] | end[i]) & np.uint32(0x7FFFFF)
        exponent = (start[i] >> np.uint32(23)) & np.uint32(0xFF)
        if exponent != 0:
            kind = 2 * np.int64(exponent) + ((start[i] & np.uint32(0x7FFFFF)) == 0)
            counts[kind, 0] += 1
            counts[kind, 1] += start[i] == end[i]
    return counts, used
