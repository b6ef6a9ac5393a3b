"""Figures of the search: accuracy over λ, and what accuracy costs."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pastry.report.formatting import lam
from pastry.report.measured import Search
from pastry.report.style import INK, MUTED, NARROW, plain, series

RING = {"marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}


def lambda_curves(search: Search) -> Figure:
    """A panel a source, on the same scales: validation accuracy over λ; the target's level dashed, the winner ringed."""
    sources = list(dict.fromkeys(point.source for point in search.points))
    columns = min(3, len(sources))
    rows = math.ceil(len(sources) / columns)
    size = (NARROW if columns == 1 else 0.5 + 2.2 * columns, 0.75 + 2.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    handles = {}
    for i, (axes, source) in enumerate(zip(panels, sources, strict=False)):
        plain(axes)
        axes.set_title(source)
        axes.set_ylim(0, 104)
        points = sorted((point for point in search.points if point.source == source), key=lambda point: point.lambda_)
        if level := search.level:
            axes.axhspan(100 * level.low, 100 * level.high, color=MUTED, alpha=0.15, linewidth=0)
            handles["target_sft (λ = 0)"] = axes.axhline(100 * level.accuracy, color=INK, linewidth=1, linestyle="--")
        x, look = [point.lambda_ for point in points], series(i)
        axes.vlines(x, [100 * p.low for p in points], [100 * p.high for p in points], color=look["color"], linewidth=1.4)
        axes.plot(x, [100 * p.accuracy for p in points], markersize=5, **look)
        for point in filter(search.won, points):
            (handles[f"chosen: λ = {lam(point.lambda_)}"],) = axes.plot(point.lambda_, 100 * point.accuracy, **RING)
    for axes in figure.axes[len(sources) :]:
        axes.set_axis_off()
    for axes in figure.axes[max(0, len(sources) - columns) : len(sources)]:
        axes.tick_params(labelbottom=True)  # a column's last panel need not be in the last row
    figure.supxlabel("λ", fontsize=9)
    figure.supylabel("validation accuracy, %", fontsize=9)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
    return figure


def pareto_plot(search: Search) -> Figure:
    """Complete trials: accuracy over what injection may break. The front is numbered as in the page's table."""
    costs = {
        "perplexity of the target's documents": lambda trial: trial.perplexity,
        "accuracy on the retention questions, %": lambda trial: trial.retention and 100 * trial.retention.accuracy,
    }
    done = [trial for trial in search.trials if trial.complete]
    costs = {label: cost for label, cost in costs.items() if any(cost(trial) is not None for trial in done)}
    sources = list(dict.fromkeys(trial.source for trial in done))
    figure = Figure(figsize=(max(NARROW, 3.6 * len(costs)), 3.1 + 0.2 * math.ceil(len(sources) / 3)), layout="constrained")
    handles = {source: Line2D([], [], linestyle="none", **series(i)) for i, source in enumerate(sources)}
    for axes, (label, cost) in zip(figure.subplots(1, len(costs), sharey=True, squeeze=False)[0], costs.items(), strict=True):
        plain(axes)
        axes.set_xlabel(label)
        axes.margins(0.12)
        for trial in done:
            if (at := cost(trial)) is None:
                continue
            look = series(sources.index(trial.source))
            fill = look["color"] if trial.pareto else "none"
            axes.plot(at, 100 * trial.accuracy, linestyle="none", markersize=7, markerfacecolor=fill, **look)
            if search.won(trial):
                (handles["chosen"],) = axes.plot(at, 100 * trial.accuracy, **RING | {"markersize": 14})
        front = {place: (cost(trial), 100 * trial.accuracy) for place, trial in enumerate(search.front, 1)}
        _number(axes, {place: (x, y) for place, (x, y) in front.items() if x is not None})
        if search.reference and (at := cost(search.reference)) is not None:
            style = {"marker": "P", "markersize": 9, "color": INK, "linestyle": "none"}
            (handles["target_sft (λ = 0)"],) = axes.plot(at, 100 * search.reference.accuracy, **style)
    figure.axes[0].set_ylabel("validation accuracy, %")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    return figure


def _number(axes: Axes, places: dict[int, tuple[float, float]]) -> None:
    """Write each place in the front beside its point; points that lie together share one label."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    together: dict[tuple[int, int], list[int]] = {}
    for place, (x, y) in places.items():
        together.setdefault((round(20 * (x - left) / (right - left)), round(20 * (y - low) / (high - low))), []).append(place)
    for numbers in together.values():
        axes.annotate(", ".join(map(str, numbers)), places[numbers[0]], (8, -3), textcoords="offset points", fontweight="bold")
