"""The report's figures, and those of the run itself: its rows, training and cosines."""

from __future__ import annotations

import math
import textwrap

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pastry.report.data import ReportData
from pastry.report.formatting import decimals
from pastry.report.precision_plots import ratio_strip
from pastry.report.search_plots import lambda_curves, pareto_plot
from pastry.report.style import GRID, INK, LINES, MUTED, NARROW, STYLE, diverging, one_panel, plain
from pastry.report.transfer_plots import ablation_plot, gain_map
from pastry.vectors.modules import OUTSIDE_LAYERS

REWARDS = {
    "reward": "reward",
    "rewards/recall/mean": "share that recalls first",
    "rewards/well_formed/mean": "share well formed",
}
"""What the panels of RL stages draw: key of a logged point → label."""


def figures(data: ReportData) -> dict[str, Figure]:
    """The report's figures by name, in the page's order; all but accuracies and lambda only where there is something."""
    rewards = {stage: data.curves[stage] for stage in rl_stages(data)}
    losses = {stage: points for stage, points in data.curves.items() if stage not in rewards}
    with mpl.rc_context(STYLE):
        drawn = {"accuracies": accuracies(data), "lambda": lambda_curves(data.search)}
        if data.search.front:
            drawn["pareto"] = pareto_plot(data.search)
        if data.matrix:
            drawn["matrix"] = gain_map(data.matrix)
        if data.ablation:
            drawn["ablation"] = ablation_plot(data.ablation)
        if any(tensor.realised_ratio is not None for tensor in data.injected.tensors.values()):
            drawn["precision"] = ratio_strip(data.injected)
        if any(layer != OUTSIDE_LAYERS for table in data.cosine_tables.values() for layer in table):
            drawn["cosines"] = heat_maps(data.cosine_tables)
        if losses:
            drawn["losses"] = curves(losses, {"loss": "loss"})
        if rewards:
            drawn["rewards"] = curves(rewards, REWARDS, top=1.05)
    return drawn


def rl_stages(data: ReportData) -> list[str]:
    """The training stages that logged a reward."""
    return [stage for stage, points in data.curves.items() if any("reward" in point for point in points)]


def accuracies(data: ReportData) -> Figure:
    """A bar a row of the result table, with its 95 % interval; target_sft's level as a line."""
    figure, axes = one_panel(NARROW, 0.6 + 0.26 * len(data.rows))
    for y, row in enumerate(data.rows):
        best = row.name == "past@best"
        axes.barh(y, 100 * row.accuracy, height=0.62, color=LINES[0] if best else MUTED, alpha=0.9 if best else 0.45)
        axes.plot([100 * row.low, 100 * row.high], [y, y], color=INK, linewidth=1.4, marker="|", markersize=6)
        axes.text(100 * row.high + 1.5, y, f"{100 * row.accuracy:.1f}", va="center", fontweight="bold" if best else "normal")
        if row.name == "target_sft":
            axes.axvline(100 * row.accuracy, color=INK, linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(data.rows)), [row.name for row in data.rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %")
    axes.grid(axis="y", visible=False)
    return figure


def heat_maps(tables: dict[str, dict[str, dict[str, float | None]]]) -> Figure:
    """Cosines by layer (rows) and module (columns), the tables side by side on one symmetric colour scale."""
    layers = {title: [layer for layer in table if layer != OUTSIDE_LAYERS] for title, table in tables.items()}
    modules = {title: list(dict.fromkeys(m for at in layers[title] for m in table[at])) for title, table in tables.items()}
    rows, columns = max(map(len, layers.values())), max(map(len, modules.values()))
    values = [value for table in tables.values() for layer in table.values() for value in layer.values()]
    limit = max((abs(value) for value in values if value is not None), default=0) or 1.0

    labels = 0.065 * max(len(label) for names in modules.values() for label in _short(names))
    size = (len(tables) * (0.35 * columns + 0.55) + 0.7, 0.22 * rows + labels + 0.75)
    figure = Figure(figsize=size, layout="constrained")
    for axes, (title, table) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        plain(axes, grid=False)
        values = [[table[layer].get(module) for module in modules[title]] for layer in layers[title]]
        cells = np.ma.masked_invalid(np.array(values, dtype=float).reshape(len(layers[title]), len(modules[title])))
        image = axes.pcolormesh(cells, cmap=diverging(), vmin=-limit, vmax=limit, edgecolors=GRID, linewidth=0.5)
        for (y, x), _ in np.ndenumerate(cells):
            axes.text(x + 0.5, y + 0.5, decimals(values[y][x], 2), ha="center", va="center", fontsize=7)
        axes.set_xticks(np.arange(len(modules[title])) + 0.5, _short(modules[title]), rotation=90, fontsize=8)
        axes.set_yticks(np.arange(len(layers[title])) + 0.5, layers[title], fontsize=8)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("bottom")
        outside = [f"{module} {decimals(value, 2)}" for module, value in table.get(OUTSIDE_LAYERS, {}).items()]
        axes.set_xlabel("outside the layers: " + ", ".join(outside) if outside else "", fontsize=8)
        axes.set_ylabel("layer")
        axes.set_title(textwrap.fill(title, 10 + 5 * columns), pad=8)
        axes.invert_yaxis()
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.9, aspect=3 + 1.5 * rows, pad=0.01)
    bar.ax.tick_params(color=MUTED, labelcolor=INK, labelsize=8)
    bar.outline.set_visible(False)
    bar.set_label("cosine")
    return figure


def curves(stages: dict[str, list[dict[str, float]]], series: dict[str, str], top: float | None = None) -> Figure:
    """A panel a training stage, with a line for each key of `series` that its points have."""
    columns = min(4, len(stages))
    rows = math.ceil(len(stages) / columns)
    figure = Figure(figsize=(max(3.6, 2.4 * columns), 1.75 * rows + 0.35 * (len(series) > 1)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    handles = {}
    for axes, (stage, points) in zip(panels, stages.items(), strict=False):
        plain(axes)
        axes.set_title(stage)
        for colour, (key, label) in zip(LINES, series.items(), strict=False):
            logged = [(point["step"], point[key]) for point in points if key in point]
            if logged:
                (handles[label],) = axes.plot(*zip(*logged, strict=True), color=colour, linewidth=1.3)
        axes.set_ylim(0, top)
    for axes in list(figure.axes)[len(stages) :]:
        axes.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    if len(series) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(series))
    else:
        figure.supylabel(*series.values(), fontsize=9)
    return figure


def _short(modules: list[str]) -> list[str]:
    """Last parts of the names (q_proj), unless two modules share one."""
    last = [module.rsplit(".", 1)[-1] for module in modules]
    return [short if last.count(short) == 1 else module for short, module in zip(last, modules, strict=True)]
