"""Agreement of rankings: against scipy, and against permutations that can be counted by hand."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from pastry.evaluation.agreement import agreement, combined, places, within_targets
from pastry.evaluation.pass_at_k import pass_at_k
from pastry.evaluation.statistics import cochran_q


def table(rows, targets=("x",)):
    """{"s0": {target: value}}; None: no such pair."""
    return {
        f"s{i}": {target: value for target, value in zip(targets, row, strict=True) if value is not None}
        for i, row in enumerate(rows)
    }


@pytest.mark.parametrize(("n", "correct", "k"), [(6, 0, 3), (6, 2, 3), (6, 5, 2), (6, 6, 1), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n, correct, k):
    subsets = list(permutations(range(n), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(min(s) < correct for s in subsets) / len(subsets))


def test_one_target_is_spearman_with_ties():
    x, y = [1, 2, 2, 5, 3, 3], [0.1, 0.4, 0.2, 0.4, 0.4, 0.0]
    found = agreement([(table([[v] for v in x]), table([[v] for v in y]))])
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic) and found.n == 6


def test_the_main_number_weighs_targets_by_their_sources_less_one():
    predicted = table([[1, 1], [2, 2], [3, 3], [4, None]], "xy")
    measured = table([[0.1, 0.3], [0.2, 0.2], [0.3, 0.1], [0.4, 0.9]], "xy")
    found = agreement([(predicted, measured)])
    assert found.targets == pytest.approx({"x": 1.0, "y": -1.0})
    assert found.rho == pytest.approx((3 * 1 + 2 * -1) / 5) and found.n == 7


def test_p_counts_the_orders_of_the_sources():
    # ρ of 4 in 4! = 24 orders is 0.8 or beyond in 1 (+1) + 3 (+0.8) cases, and as often with the other sign.
    perfect, one_swap = [1, 2, 3, 4], [1, 2, 4, 3]
    measured = table([[0.1], [0.2], [0.3], [0.4]])
    assert agreement([(table([[v] for v in perfect]), measured)]).p == pytest.approx(2 / 24)
    found = agreement([(table([[v] for v in one_swap]), measured)])
    assert found.rho == pytest.approx(0.8) and found.p == pytest.approx(8 / 24)


def test_more_targets_of_the_same_sources_are_no_further_evidence():
    one = agreement([(table([[v] for v in range(4)]), table([[v] for v in range(4)]))])
    four = agreement([(table([[v] * 4 for v in range(4)], "wxyz"), table([[v] * 4 for v in range(4)], "wxyz"))])
    assert four.n == 16 and (four.rho, four.p, four.low, four.high) == pytest.approx((one.rho, one.p, one.low, one.high))
    assert four.verdict == "no signal here" and "4 sources cannot show agreement: p is at least 0.083" in four.reason


@pytest.mark.parametrize(("sign", "verdict"), [(1, "agreed"), (-1, "opposite")])
def test_five_sources_in_one_order_agree(sign, verdict):
    found = agreement([(table([[sign * v] for v in range(5)]), table([[v] for v in range(5)]))])
    assert found.verdict == verdict and found.rho == pytest.approx(sign) and found.p == pytest.approx(2 / 120)
    # Half a step below 1, so that the interval exists: 5 sources move ρ in steps of 12 / (5 · 24) = 0.1.
    assert -1 < found.low < sign * 0.95 < found.high < 1


def test_runs_keep_their_sources_apart():
    # Each run ranks perfectly, the second at another level: over all pairs together ρ would not be 1.
    low, high = table([[v] for v in range(4)]), table([[v] for v in range(10, 14)])
    found = agreement([(low, high), (high, low)])
    assert found.rho == pytest.approx(1) and found.p == pytest.approx(2 / 24**2) and found.verdict == "agreed"
    assert found.targets.keys() == {"1/x", "2/x"}


def test_the_interval_is_bonett_and_wright_over_sources():
    x, y = [1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]
    found = agreement([(table([[v, v] for v in x], "ab"), table([[v, v] for v in y], "ab"))])
    half = 1.959964 * math.sqrt((1 + found.rho**2 / 2) / (6 - 3))
    assert (found.low, found.high) == pytest.approx(
        (np.tanh(np.arctanh(found.rho) - half), np.tanh(np.arctanh(found.rho) + half))
    )


@pytest.mark.parametrize(
    ("predicted", "measured", "reason"),
    [
        ([[2.0], [2.0], [2.0]], [[0.1], [0.2], [0.3]], "the signal is the same for all sources"),
        ([[1.0], [2.0], [3.0]], [[0.4], [0.4], [0.4]], "the gain is the same for all sources"),
        ([[1.0]], [[0.4]], "one source"),
        ([[None], [None]], [[0.1], [0.2]], "does not apply"),
    ],
)
def test_nothing_to_correlate_is_said(predicted, measured, reason):
    found = agreement([(table(predicted), table(measured))])
    assert found.rho is None and found.p is None and found.verdict == "no signal here" and reason in found.reason


def test_two_sources_have_a_rho_but_no_interval():
    found = agreement([(table([[1], [2]]), table([[0.1], [0.2]]))])
    assert found.rho == pytest.approx(1) and (found.low, found.high) == (None, None) and found.p == 1


def test_ranks_within_targets_share_ties():
    assert within_targets(table([[5, 1], [5, 2], [7, None]], "xy")) == {
        "s0": {"x": pytest.approx(1 / 3), "y": 0.25},
        "s1": {"x": pytest.approx(1 / 3), "y": 0.75},
        "s2": {"x": pytest.approx(2.5 / 3)},
    }


def test_signals_are_combined_by_rank_whatever_their_scale():
    both = combined([table([[1e-9], [3e-9], [2e-9]]), table([[10], [1000], [5]])])
    assert places(both) == {"s1": 1, "s0": 2, "s2": 2}


def test_places_compare_sources_within_their_targets():
    # s2 gains less than the others on the whole, for its only target has little room; there it is the best.
    gains = table([[0.5, 0.01], [0.4, 0.0], [None, 0.02]], "xy")
    assert places(within_targets(gains)) == {"s2": 1, "s0": 2, "s1": 3}


def test_cochrans_q_of_two_models_is_mcnemars_test():
    a, b = [1] * 10 + [0] * 4 + [1] * 6, [0] * 10 + [1] * 4 + [1] * 6
    assert cochran_q([a, b]) == pytest.approx(stats.chi2.sf((10 - 4) ** 2 / 14, 1))
    assert cochran_q([a, a]) == 1
