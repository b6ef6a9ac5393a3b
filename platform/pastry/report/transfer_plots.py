"""Figures of transfer: sources into targets, and module groups alone or left out."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pastry.report.formatting import points
from pastry.report.measured import Ablation, Matrix
from pastry.report.style import GRID, INK, LINES, MUTED, diverging, plain


def gain_map(matrix: Matrix) -> Figure:
    """A cell a pair: the gain in points with its interval, bold where that excludes zero; a source's own domain framed."""
    cells = [[matrix.gains.get(source, {}).get(target) for target in matrix.targets] for source in matrix.sources]
    means = np.array([[np.nan if gain is None else 100 * gain.mean for gain in row] for row in cells])
    limit = np.nanmax(np.abs(means)) or 1.0
    figure = Figure(figsize=(1.6 + 1.05 * len(matrix.targets), 0.8 + 0.5 * len(matrix.sources)), layout="constrained")
    axes = figure.subplots()
    plain(axes, grid=False)
    axes.pcolormesh(np.ma.masked_invalid(means), cmap=diverging(), vmin=-limit, vmax=limit, edgecolors=GRID, linewidth=0.8)
    for (y, x), _ in np.ndenumerate(means):
        gain = cells[y][x]
        sure = "bold" if gain and not gain.low <= 0 <= gain.high else "normal"
        centred = {"ha": "center", "va": "center"}
        axes.text(x + 0.5, y + 0.36, points(gain.mean) if gain else "–", fontweight=sure, fontsize=10, **centred)
        if gain:
            axes.text(x + 0.5, y + 0.72, f"{points(gain.low)} to {points(gain.high)}", fontsize=7.5, **centred)
        if matrix.sources[y] == matrix.targets[x]:
            axes.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, fill=False, edgecolor=INK))
    axes.set_xticks(np.arange(len(matrix.targets)) + 0.5, matrix.targets)
    axes.set_yticks(np.arange(len(matrix.sources)) + 0.5, matrix.sources)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("target")
    axes.set_ylabel("source of the skill")
    axes.invert_yaxis()
    return figure


def ablation_plot(ablation: Ablation) -> Figure:
    """Gains with intervals of each group alone and of all but it, beside the group's share of ‖v‖²."""
    figure = Figure(figsize=(6.4, 1.15 + 0.42 * len(ablation.groups)), layout="constrained")
    gains, shares = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for axes in (gains, shares):
        plain(axes)
        axes.grid(axis="y", visible=False)
    ways = (("only", "this group alone", "o", LINES[0], -0.15), ("without", "all but this group", "s", LINES[1], 0.15))
    for y, group in enumerate(ablation.groups):
        for way, label, marker, colour, aside in ways:
            gain = getattr(group, way).gain
            gains.plot([100 * gain.low, 100 * gain.high], [y + aside] * 2, color=colour, linewidth=1.4)
            gains.plot(100 * gain.mean, y + aside, marker, color=colour, label=label if y == 0 else None)
        shares.barh(y, 100 * group.norm_share, height=0.5, color=MUTED, alpha=0.5)
        shares.text(100 * group.norm_share + 2, y, f"{100 * group.norm_share:.0f}", va="center")
    gains.axvline(0, color=MUTED, linewidth=1)
    gains.axvline(100 * ablation.full.gain.mean, color=INK, linewidth=1, linestyle="--", label="the whole vector")
    gains.set_xlabel("gain over target_sft, points")
    gains.set_yticks(range(len(ablation.groups)), [group.group for group in ablation.groups])
    gains.invert_yaxis()
    shares.set_xlim(0, 118)
    shares.set_xticks([0, 50, 100])
    shares.set_xlabel("share of ‖v‖², %")
    figure.legend(loc="outside upper center", ncols=3)
    return figure
