"""Intervals against hand-checked and simulated ones."""

import numpy as np
import pytest

from pastry.evaluation.statistics import paired_difference, wilson


def test_wilson_against_the_formula():
    n, p, z = 50, 0.8, 1.959964
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson([True] * 40 + [False] * 10) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_wilson_of_none_and_all_right():
    assert wilson([False] * 20)[0] == 0 and 0 < wilson([False] * 20)[1] < 0.2
    assert wilson([True] * 20)[1] == 1


def test_a_paired_interval_is_narrower_than_the_spread_of_unpaired_answers():
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.6
    b = a.copy()
    b[:40] = False  # b differs from a on few questions
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(a.mean() - b.mean())
    assert 0 < low < mean < high and high - low < 0.06
    shuffled = rng.permutation(b)
    _, low, high = paired_difference(a, shuffled)
    assert high - low > 0.12


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        a, b = rng.random(150) < 0.7, rng.random(150) < 0.6
        _, low, high = paired_difference(a, b)
        inside += low <= 0.1 <= high
    assert 182 <= inside <= 198


def test_equal_answers_have_no_difference():
    assert paired_difference([True, False, True], [True, False, True]) == (0, 0, 0)
