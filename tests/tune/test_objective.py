"""Which trial wins, exactly, on numbers small enough to check by hand."""

import pytest

from pastry.config import Penalties
from pastry.evaluation.measure import Items, Measurement
from pastry.evaluation.objective import best, objective, pareto
from pastry.evaluation.statistics import independent_difference

REFERENCE = Measurement(correct=[True, False], retained=[True] * 3 + [False], losses=[(2.0, 2), (6.0, 2)])


def test_the_objective_is_accuracy_minus_what_was_broken():
    found = Measurement(correct=[True, True, True, False], retained=[True, False, False, False], losses=[(4.0, 2), (6.0, 2)])
    assert objective(found, REFERENCE, Penalties()) == 0.75
    assert objective(found, REFERENCE, Penalties(retention=0.5)) == 0.75 - 0.5 * (0.75 - 0.25)
    increase = found.perplexity / REFERENCE.perplexity - 1  # exp(10 / 4) over exp(8 / 4)
    assert increase == pytest.approx(2.718281828**0.5 - 1)
    assert objective(found, REFERENCE, Penalties(perplexity=0.1, retention=0.5)) == pytest.approx(0.5 - 0.1 * increase)


def test_what_got_better_is_not_rewarded():
    better = Measurement(correct=[True, False], retained=[True] * 4, losses=[(1.0, 2), (1.0, 2)])
    assert objective(better, REFERENCE, Penalties(perplexity=5, retention=5)) == 0.5


def trial(accuracy, perplexity=1.0, retention=1.0, lam=1.0, complete=True, method="single") -> dict:
    kept = None if retention is None else {"accuracy": retention}
    return {
        "accuracy": accuracy,
        "objective": accuracy,
        "perplexity": perplexity,
        "retention": kept,
        "lambda": lam,
        "complete": complete,
        "method": method,
    }


def test_the_pareto_front_of_three_measures():
    trials = [
        trial(0.9, 1.5, 0.8),  # the most accurate
        trial(0.8, 1.2, 0.8),  # less of everything
        trial(0.8, 1.2, 0.7),  # dominated by the one before
        trial(0.8, 1.3, 0.9),  # keeps the most
        trial(1.0, 1.0, 1.0, complete=False),  # stopped early: its numbers are of fewer questions
    ]
    assert pareto(trials) == [True, True, False, True, False]
    assert pareto([trial(0.5), trial(0.5)]) == [True, True]  # equals do not dominate each other
    assert pareto([trial(0.5, None, None), trial(0.6, None, None)]) == [False, True]  # accuracy alone was measured


@pytest.mark.parametrize(
    ("trials", "winner"),
    [
        ([trial(0.9, lam=2.0), trial(0.8, lam=1.0)], 0),
        ([trial(0.9, lam=2.0), trial(0.9, lam=0.75), trial(0.9, lam=1.5)], 1),
        ([trial(0.9, lam={"attention": 1.0, "all": 2.0}), trial(0.9, lam=1.5)], 1),
        ([trial(0.9, method="mean"), trial(0.9)], 1),
        ([trial(1.0, complete=False), trial(0.1)], 1),
    ],
)
def test_the_best_has_the_highest_objective_then_the_lambda_nearest_one(trials, winner):
    assert best(trials) is trials[winner]


def test_parts_of_the_items_meet_and_are_nested():
    items = Items(list(range(10)), list(range(7)), list(range(3)))
    assert items.part(0, 1) == items
    for parts in (2, 3, 4):
        pieces = [items.part(k / parts, (k + 1) / parts) for k in range(parts)]
        assert [q for piece in pieces for q in piece.questions] == items.questions
        assert [q for piece in pieces for q in piece.retention] == items.retention
        assert [q for piece in pieces for q in piece.documents] == items.documents


def test_newcombes_interval_of_two_independent_samples():
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, example (a), method 10: 56/70 - 48/80.
    a, b = [True] * 56 + [False] * 14, [True] * 48 + [False] * 32
    mean, low, high = independent_difference(a, b)
    assert mean == pytest.approx(0.2)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
