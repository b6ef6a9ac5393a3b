"""The report's figures: on the page as inline SVG, in MLflow as PNG."""

from __future__ import annotations

import io
import math
import re
import textwrap

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

from pastry.report.data import ReportData
from pastry.vectors.modules import OUTSIDE_LAYERS

PALETTE = {
    "ink": "#1f2328",
    "muted": "#6e7781",
    "grid": "#d8dee4",
    "c1": "#0b62c4",
    "c2": "#bf4b0a",
    "c3": "#17803d",
    "c4": "#8035c9",
    "c5": "#bd1e62",
    "c6": "#0d7a78",
    "cold": "#3f88d6",
    "warm": "#e0792b",
}
"""CSS variable → its light-mode colour. Figures are drawn in these; the page redefines the variables for dark mode."""
INK, MUTED, GRID = PALETTE["ink"], PALETTE["muted"], PALETTE["grid"]
LINES = [PALETTE[f"c{i}"] for i in range(1, 7)]
MARKERS = "osD^vP"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in someone's stage name is a dollar
    "axes.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
}
REWARDS = {
    "reward": "reward",
    "rewards/recall/mean": "share that recalls first",
    "rewards/well_formed/mean": "share well formed",
}
"""What the panels of RL stages draw: key of a logged point → label."""
NARROW = 4.5
"""Inches: the width of a figure that is read on a phone without scrolling."""
STRONGEST = 0.7
"""Opacity of a heat map's strongest cell: the number in it stays readable on either background."""


def figures(data: ReportData) -> dict[str, Figure]:
    """The report's figures by name: accuracies, lambda, cosines, losses, rewards (the last three where there is something)."""
    rewards = {stage: data.curves[stage] for stage in rl_stages(data)}
    losses = {stage: points for stage, points in data.curves.items() if stage not in rewards}
    with mpl.rc_context(STYLE):
        drawn = {"accuracies": accuracies(data), "lambda": lambda_curve(data)}
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


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element for inline use: transparent, coloured by CSS variables, same figure same text."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to a group, and the next figure has the same ids
    for variable, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{variable})")
    # As wide as the page within limits; below the lower one (a narrow figure just fits a phone) it scrolls.
    width, points = figure.get_figwidth() * 96, r'width="[\d.]+pt" height="[\d.]+pt"'
    return re.sub(points, f'style="width:100%;max-width:{1.3 * width:.0f}px;min-width:{0.82 * width:.0f}px"', svg, count=1)


def accuracies(data: ReportData) -> Figure:
    """A bar a row of the result table, with its 95 % interval; target_sft's level as a line."""
    figure, axes = _figure(NARROW, 0.6 + 0.26 * len(data.rows))
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


def lambda_curve(data: ReportData) -> Figure:
    """Validation accuracy over λ, a line a source; the best point ringed, the level of λ = 0 dashed."""
    figure, axes = _figure(NARROW, 2.9)
    span = max(p.lambda_ for p in data.search) - min(p.lambda_ for p in data.search)
    sources = list(dict.fromkeys(point.source for point in data.search))
    best, ringed = (data.skill, data.lambda_best), []
    for i, source in enumerate(sources):
        points = sorted((p for p in data.search if p.source == source), key=lambda point: point.lambda_)
        aside = 0.008 * span * (i - (len(sources) - 1) / 2)  # so that intervals at one λ stand side by side
        x, y = [p.lambda_ + aside for p in points], [100 * p.accuracy for p in points]
        colour, marker = LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
        axes.vlines(x, [100 * p.low for p in points], [100 * p.high for p in points], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=source)
        ringed += [(at, 100 * p.accuracy) for at, p in zip(x, points, strict=True) if (source, p.lambda_) == best]
    for at, level in ringed:
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "linestyle": "none"}
        axes.plot(at, level, marker="o", label=f"best: {data.skill}, λ = {data.lambda_best:g}", **ring)
    for point in data.search:
        if point.lambda_ == 0:
            axes.axhline(100 * point.accuracy, color=INK, linewidth=1, linestyle="--", label="target_sft (λ = 0)")
            break
    axes.set_ylim(0, 104)
    axes.set_xlabel("λ")
    axes.set_ylabel("validation accuracy, %")
    figure.legend(loc="outside lower center", ncols=2)
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
        _plain(axes)
        values = [[table[layer].get(module) for module in modules[title]] for layer in layers[title]]
        cells = np.ma.masked_invalid(np.array(values, dtype=float).reshape(len(layers[title]), len(modules[title])))
        image = axes.pcolormesh(cells, cmap=_diverging(), vmin=-limit, vmax=limit, edgecolors=GRID, linewidth=0.5)
        for (y, x), _ in np.ndenumerate(cells):
            axes.text(x + 0.5, y + 0.5, _number(values[y][x]), ha="center", va="center", fontsize=7)
        axes.set_xticks(np.arange(len(modules[title])) + 0.5, _short(modules[title]), rotation=90, fontsize=8)
        axes.set_yticks(np.arange(len(layers[title])) + 0.5, layers[title], fontsize=8)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("bottom")
        outside = [f"{module} {_number(value)}" for module, value in table.get(OUTSIDE_LAYERS, {}).items()]
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
        _plain(axes)
        axes.grid(color=GRID, linewidth=0.6)
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


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.6)
    return figure, axes


def _plain(axes) -> None:
    # Ticks are made when the figure is drawn, perhaps outside rc_context: their colours are set here instead.
    axes.tick_params(color=MUTED, labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)


def _diverging() -> ListedColormap:
    """Opaque cold, through transparent at 0, to opaque warm: right on a light page and on a dark one."""
    steps = np.linspace(-1, 1, 41)
    return ListedColormap([(*to_rgb(PALETTE["cold" if s < 0 else "warm"]), STRONGEST * abs(s)) for s in steps])


def _short(modules: list[str]) -> list[str]:
    """Last parts of the names (q_proj), unless two modules share one."""
    last = [module.rsplit(".", 1)[-1] for module in modules]
    return [short if last.count(short) == 1 else module for short, module in zip(last, modules, strict=True)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
