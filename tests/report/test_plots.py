"""The figures, as MLflow gets them."""

import pytest

from pastry.report.measured import Search
from pastry.report.plots import figures
from pastry.report.precision_plots import ratio_strip
from pastry.report.search_plots import lambda_curves, pareto_plot
from pastry.report.transfer_plots import ablation_plot, gain_map
from tests.report.sample import full, minimal


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_all_of_them(tmp_path):
    drawn = figures(full())
    assert list(drawn) == ["accuracies", "lambda", "pareto", "matrix", "ablation", "precision", "cosines", "losses", "rewards"]
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png")
    assert list(figures(minimal())) == ["accuracies", "lambda", "precision", "cosines", "losses", "rewards"]


def test_cosines_of_a_large_model():
    shown = set(words(figures(minimal(layers=28))["cosines"].axes[0]))
    assert {"–", "0.00"} <= shown
    assert "-" not in "".join(shown)


def test_a_lambda_curve_a_source():
    data = full()
    figure = lambda_curves(data.search)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(dict.fromkeys(point.source for point in data.search.points))
    assert legend(figure) == ["target_sft (λ = 0)", "chosen: λ = 1"]
    curve = next(line for line in panels[0].lines if len(line.get_xdata()) == 6)
    measured = [100 * point.accuracy for point in data.search.points if point.source == "planet"]
    assert list(curve.get_ydata()) == pytest.approx(measured)
    (intervals,) = (each for each in panels[0].collections if len(each.get_paths()) == 6)
    lows = [100 * point.low for point in data.search.points if point.source == "planet"]
    assert [path.vertices[0][1] for path in intervals.get_paths()] == pytest.approx(lows)


def test_a_lambda_a_group_is_on_no_curve():
    search = minimal().search
    search.best.lambda_ = {"attention": 1.0, "all": 0.5}
    assert legend(lambda_curves(search)) == ["target_sft (λ = 0)"]


def test_the_pareto_front_is_numbered_as_in_the_table():
    search = full().search
    figure = pareto_plot(search)
    numbers = sorted(int(number) for text in words(figure.axes[0]) for number in text.split(", "))
    assert numbers == list(range(1, len(search.front) + 1))
    assert legend(figure)[-2:] == ["chosen", "target_sft (λ = 0)"]
    assert [axes.get_xlabel() for axes in figure.axes][1].startswith("accuracy on the retention")


def test_places_that_lie_together_share_a_label():
    best = {"n": 9, "accuracy": 0.5, "low": 0.4, "high": 0.6, "source": "a", "lambda": 1.0}
    trial = best | {"method": "single", "objective": 0.5, "complete": True, "pareto": True, "perplexity": 1.5}
    same = [trial, trial | {"lambda": 2.0}, trial | {"perplexity": 1.9, "accuracy": 0.7, "lambda": 3.0}]
    search = Search.model_validate({"points": [], "best": best, "trials": same})
    assert words(pareto_plot(search).axes[0]) == ["1", "2, 3"]


def test_gains_with_intervals():
    data = full()
    axes = gain_map(data.matrix).axes[0]
    gain = data.matrix.gains["planet"]["ship"]
    shown = words(axes)
    assert f"+{100 * gain.mean:.1f}" in shown and f"+{100 * gain.low:.1f} to +{100 * gain.high:.1f}" in shown
    assert {text.get_fontweight() for text in axes.texts if text.get_text().startswith("−4.4")} == {"normal"}
    assert len(axes.patches) == 2  # planet and person are targets, too
    del data.matrix.gains["drug"]["castle"]
    assert "–" in words(gain_map(data.matrix).axes[0])


def test_groups_beside_their_share():
    gains, shares = ablation_plot(full().ablation).axes
    assert [label.get_text() for label in gains.get_yticklabels()][:2] == ["attention", "mlp"]
    assert words(shares)[:2] == ["31", "58"]


def test_every_tensor_is_on_the_strip():
    injected = full().injected
    axes = ratio_strip(injected).axes[0]
    drawn = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in drawn) == len(injected.tensors)
    assert axes.get_xlim()[0] < 99 < axes.get_xlim()[1]
