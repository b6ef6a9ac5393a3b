import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pastry.errors import PastryError
from pastry.vectors import kernels
from pastry.vectors.rounding import BLOCK, block_ranges, derive_key, round_to, widen

ANY_BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64)
EDGES = [0, 1 << 31, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x3F808000, 0x7F7FFFFF, 0x7F7F7FFF, 0x7F7F8000, 0x00800000]


def numbers(bits) -> np.ndarray:
    """Finite float32 numbers with these bits, and the edges of rounding."""
    values = np.array([*bits, *EDGES], np.uint32).view(np.float32)
    return values[np.isfinite(values)]


def rounded(values: np.ndarray, dtype, start: int = 0, key: int | None = None) -> np.ndarray:
    return round_to(np.asarray(values, np.float32), np.empty(len(values), dtype), start, key)


def as_float32(stored: np.ndarray, where: str = "w") -> np.ndarray:
    return widen(stored, np.empty(stored.shape, np.float32), where, stored.shape, 0)


@settings(deadline=None)
@given(ANY_BITS)
def test_nearest_is_torchs_and_widening_is_exact(bits):
    values = numbers(bits)
    tensor = torch.from_numpy(values)
    assert np.array_equal(rounded(values, np.uint16), tensor.bfloat16().view(torch.uint16).numpy())
    assert np.array_equal(rounded(values, np.float16).view(np.uint16), tensor.half().view(torch.uint16).numpy())
    assert np.array_equal(rounded(values, np.float32).view(np.uint32), values.view(np.uint32))
    for dtype in (torch.bfloat16, torch.float16):
        held = tensor.to(dtype)
        held = held[held.isfinite()]
        stored = held.view(torch.uint16).numpy() if dtype == torch.bfloat16 else held.numpy()
        assert np.array_equal(as_float32(stored).view(np.uint32), held.float().numpy().view(np.uint32))


@settings(deadline=None)
@given(ANY_BITS, st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_stochastic_goes_to_a_neighbour_and_keeps_what_bfloat16_holds(bits, key, start):
    values = numbers(bits)
    down = values.view(np.uint32) >> 16
    found = rounded(values, np.uint16, start, key).astype(np.uint32)
    exact = values.view(np.uint32) & 0xFFFF == 0
    assert np.array_equal(found[exact], down[exact])
    assert set((found - down).tolist()) <= {0, 1}
    # Element by element: the bits depend on the key and the position alone.
    alone = [rounded(values[i : i + 1], np.uint16, start + i, key)[0] for i in range(len(values))]
    assert np.array_equal(found, np.array(alone, np.uint32))


def test_stochastic_is_unbiased():
    low, step, n = 1.0, 2.0**-7, 200_000
    for fraction in (0.1, 0.5, 0.9):
        for sign in (1, -1):
            value = np.float32(sign * (low + fraction * step))
            found = as_float32(rounded(np.full(n, value), np.uint16, key=derive_key(0, "w"))).astype(np.float64)
            assert set(np.unique(found)) == {sign * low, sign * (low + step)}
            # Five standard errors of a binomial with n draws.
            assert abs(found.mean() - value) < 5 * step * 0.5 / n**0.5


def test_splitmix64_is_the_published_stream():
    # First outputs for the state 1234567, as in the reference implementation's test values.
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]

    @kernels._exact
    def stream(key, n):
        out = np.empty(n, np.uint64)
        for i in range(n):
            out[i] = kernels.splitmix64(key, np.uint64(i))
        return out

    assert stream(np.uint64(1234567), 3).tolist() == wanted


def test_keys_differ_by_seed_and_name():
    assert len({derive_key(0, "a"), derive_key(0, "b"), derive_key(1, "a")}) == 3


def test_non_finite_numbers_are_refused_by_name_and_index():
    for dtype, bits in [(np.float32, None), (np.float16, None), (np.uint16, 0x7FC0)]:
        stored = np.zeros(6, dtype)
        stored[5] = np.nan if bits is None else bits
        with pytest.raises(PastryError, match=r"tensor w is nan at index \[1, 2\]; repair it"):
            widen(stored, np.empty(6, np.float32), "tensor w", (2, 3), 0)
        with pytest.raises(PastryError, match=r"tensor w is nan at index \[3, 1\]"):
            widen(stored, np.empty(6, np.float32), "tensor w", (10, 3), 5)
    with pytest.raises(PastryError, match=r"tensor w is -inf at index \[\]"):
        widen(np.array([-np.inf], np.float32), np.empty(1, np.float32), "tensor w", (), 0)
    for dtype, value in [(np.float16, 70000.0), (np.uint16, np.finfo(np.float32).max)]:
        with pytest.raises(PastryError, match=r"is inf at index"):
            as_float32(rounded([value], dtype))


def test_blocks_cover_a_tensor_once():
    for elements in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK):
        ranges = list(block_ranges(elements))
        assert [i for block in ranges for i in block] == sorted(i for block in ranges for i in block)
        assert sum(stop - start for start, stop in ranges) == elements


def test_sums_are_accumulated_in_float64():
    a = np.full(BLOCK, 0.1, np.float32)
    exact = float(np.float64(a[0])) ** 2 * a.size
    assert kernels.dots(a, a) == pytest.approx((exact, exact, exact), rel=1e-12)
    assert kernels.square_and_zeros(a) == (pytest.approx(exact, rel=1e-12), 0)
    tiny = np.array([1e-30, 0.0, -0.0], np.float32)
    assert kernels.square_and_zeros(tiny) == (float(tiny[0]) ** 2, 2)
    assert kernels.cosine_from_dots(1e-200, 1e-200, 1e-200) == pytest.approx(1.0)
    assert kernels.cosine_from_dots(0.0, 0.0, 1.0) is None
