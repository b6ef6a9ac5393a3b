"""Each merging method against a direct computation in numpy, and the properties its formula promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pastry.errors import PastryError
from pastry.vectors.algebra import merging

SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-126), 3e38, -1e-8])
NUMBERS = st.one_of(SPECIAL, st.floats(-1, 1, width=32))
quick = settings(deadline=None, max_examples=60)


@st.composite
def sources(draw, most=5):
    """One to `most` float32 vectors of one length."""
    length = draw(st.integers(1, 30))
    return [draw(arrays(np.float32, length, elements=NUMBERS)) for _ in range(draw(st.integers(1, most)))]


def gaussian(n, length, seed=0):
    return list(np.random.default_rng(seed).standard_normal((n, length)).astype(np.float32))


def ordinary(vectors):
    """Not so large that a sum leaves float32."""
    return [np.clip(v, -1, 1) for v in vectors]


@quick
@given(sources(), st.data())
def test_the_sum_is_weighted_and_rounded_once(vectors, data):
    weights = [data.draw(st.floats(-2, 2)) for _ in vectors]
    vectors = ordinary(vectors)
    direct = sum(w * v.astype(np.float64) for v, w in zip(vectors, weights, strict=True))
    found = merging.weighted_sum(vectors, weights=weights)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, direct.astype(np.float32))


@quick
@given(sources(most=1), st.integers(1, 9))
def test_of_n_copies_mean_and_consensus_are_the_copy(vectors, n):
    copies = vectors * n
    np.testing.assert_array_equal(merging.mean(copies), vectors[0])
    np.testing.assert_array_equal(merging.consensus(copies, agree=n), vectors[0])
    assert not merging.complement(copies, agree=n, of="mean").any()


@quick
@given(sources(most=1))
def test_a_vector_and_its_opposite_cancel(vectors):
    pair = [vectors[0], -vectors[0]]
    assert not merging.mean(pair).any()
    assert not merging.consensus(pair, agree=2).any()
    assert not merging.ties(pair, thresholds=[np.float32(0)] * 2).any()


@quick
@given(sources(), st.data())
def test_consensus_keeps_the_mean_where_enough_signs_agree(vectors, data):
    agree = data.draw(st.integers(1, len(vectors)))
    found = merging.consensus(vectors, agree=agree)
    rest = merging.complement(vectors, agree=agree, of="mean")
    first = merging.complement(vectors, agree=agree, of="first")
    average = merging.mean(vectors)
    for i in range(vectors[0].size):
        signs = [np.sign(v[i]) for v in vectors]
        kept = max(signs.count(1), signs.count(-1)) >= agree
        assert found[i] == (average[i] if kept else 0)
        assert rest[i] == (0 if kept else average[i])
        assert first[i] == (0 if kept else vectors[0][i])
    np.testing.assert_array_equal(found + rest, average)


def direct_ties(vectors, density):
    """Algorithm 1 of arXiv 2306.01708, element by element."""
    k = max(1, int(density * vectors[0].size + 0.5))
    trimmed = [np.where(np.abs(v) >= np.sort(np.abs(v))[-k], v, 0).astype(np.float64) for v in vectors]
    out = np.zeros(vectors[0].size)
    for i in range(out.size):
        elected = np.sign(sum(v[i] for v in trimmed))
        agreeing = [v[i] for v in trimmed if elected and np.sign(v[i]) == elected]
        out[i] = sum(agreeing) / len(agreeing) if agreeing else 0
    return out.astype(np.float32)


def thresholds(vectors, density):
    return [merging.magnitude_threshold(lambda v=v: [v], v.size, density) for v in vectors]


@quick
@given(sources(), st.sampled_from([0.01, 0.2, 0.5, 1.0]))
def test_ties_is_the_papers_algorithm(vectors, density):
    found = merging.ties(vectors, thresholds=thresholds(vectors, density))
    np.testing.assert_array_equal(found, direct_ties(vectors, density))


@quick
@given(sources(most=1))
def test_ties_of_one_vector_that_keeps_all_is_the_vector(vectors):
    np.testing.assert_array_equal(merging.ties(vectors, thresholds=thresholds(vectors, 1.0)), vectors[0])


@quick
@given(sources(most=1), st.floats(0.01, 1), st.integers(1, 7))
def test_the_threshold_is_exact_whatever_the_blocks(vectors, density, step):
    v = vectors[0]
    k = max(1, int(density * v.size + 0.5))
    found = merging.magnitude_threshold(lambda: (v[i : i + step] for i in range(0, v.size, step)), v.size, density)
    assert found == np.sort(np.abs(v))[-k]
    assert np.count_nonzero(np.abs(v) >= found) >= k > np.count_nonzero(np.abs(v) > found)


def test_equal_magnitudes_at_the_threshold_are_all_kept():
    v = np.array([3, -2, 2, 2, 1, 0], np.float32)
    (threshold,) = thresholds([v], 2 / 6)
    np.testing.assert_array_equal(merging.ties([v], thresholds=[threshold]), [3, -2, 2, 2, 0, 0])


def test_the_sign_with_the_larger_mass_wins_over_the_majority():
    vectors = [np.array([x], np.float32) for x in (-5.0, 1.0, 2.0)]
    np.testing.assert_array_equal(merging.ties(vectors, thresholds=[np.float32(0)] * 3), [-5])


@quick
@given(sources(most=3))
def test_dare_that_drops_nothing_is_the_sum(vectors):
    vectors, weights = ordinary(vectors), [0.5] * len(vectors)
    found = merging.dare(vectors, weights=weights, drop=0.0, keys=range(len(vectors)), first=0)
    np.testing.assert_array_equal(found, merging.weighted_sum(vectors, weights=weights))


def test_dare_drops_its_share_and_is_unbiased():
    ones = np.ones(200_000, np.float32)
    for drop in (0.1, 0.9):
        found = merging.dare([ones], weights=[1.0], drop=drop, keys=[7], first=0)
        assert set(np.unique(found)) == {np.float32(0), np.float32(1 / (1 - drop))}
        error = (drop / (1 - drop) / ones.size) ** 0.5
        assert abs(found.astype(np.float64).mean() - 1) < 4 * error
    twice = merging.dare([ones, ones], weights=[1.0, 1.0], drop=0.5, keys=[7, 8], first=0)
    # Independent masks: both keep a quarter.
    assert np.mean(twice == 4) == pytest.approx(0.25, abs=0.005)


def test_dares_mask_does_not_depend_on_blocks():
    (v,) = gaussian(1, 1000)
    whole = merging.dare([v], weights=[1.0], drop=0.5, keys=[3], first=40)
    parts = [merging.dare([v[i : i + 333]], weights=[1.0], drop=0.5, keys=[3], first=40 + i) for i in range(0, 1000, 333)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_what_is_left_without_a_component_is_orthogonal_to_it():
    v, u = gaussian(2, 5000)
    wide = u.astype(np.float64)
    coefficient = merging.component(float(v @ wide), float(wide @ wide))
    left = merging.without_component(v, u, coefficient)
    assert abs(left @ wide) < 1e-9 * np.linalg.norm(left) * np.linalg.norm(wide)
    np.testing.assert_allclose(left + coefficient * wide, v, atol=1e-12)
    assert merging.component(0.0, 0.0) == 0.0


def test_a_number_that_does_not_fit_becomes_infinite_without_a_warning(recwarn):
    large = np.array([3e38], np.float32)
    assert np.isinf(merging.weighted_sum([large, large], weights=[1.0, 1.0])) and not recwarn.list


def test_defaults_and_what_a_method_takes():
    assert merging.complete_settings("mean", 3, {"agree": None}) == {}
    assert merging.complete_settings("consensus", 3, {}) == {"agree": 3}
    assert merging.complete_settings("complement", 3, {"agree": 2}) == {"agree": 2, "of": "mean"}
    assert merging.complete_settings("ties", 3, {}) == {"density": 0.2}
    assert merging.complete_settings("dare", 3, {"drop": 0.0}) == {"drop": 0.0, "seed": 0}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("median", {}, "method 'median' is unknown; wanted one of sum, mean, consensus, complement, ties, dare"),
        ("mean", {"density": 0.5}, "--density is for ties, the method is mean"),
        ("ties", {"agree": 2}, "--agree is for consensus, complement, the method is ties"),
        ("ties", {"densty": 0.5}, "setting 'densty' is unknown; wanted one of agree, of, density, drop, seed"),
        ("consensus", {"agree": 0}, "--agree is 0; wanted a whole number from 1 to 3"),
        ("consensus", {"agree": 4}, "--agree is 4; wanted a whole number from 1 to 3"),
        ("complement", {"of": "last"}, "--of is last; wanted mean or first"),
        ("ties", {"density": 0.0}, "--density is 0.0; wanted a share above 0"),
        ("ties", {"density": 1.1}, "--density is 1.1; wanted a share above 0"),
        ("ties", {"density": float("nan")}, "--density is nan"),
        ("dare", {"drop": 1.0}, "--drop is 1.0; wanted a probability"),
    ],
)
def test_a_setting_that_does_not_fit(method, given, message):
    with pytest.raises(PastryError) as caught:
        merging.complete_settings(method, 3, given)
    assert str(caught.value).startswith(message)
