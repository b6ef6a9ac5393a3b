"""Pictures of one update, and of two: a heat map by layer and module."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap, ListedColormap, to_rgb
from matplotlib.figure import Figure

from pastry.report.style import GRID, INK, MUTED, PALETTE, STRONGEST, STYLE
from pastry.vectors.geometry.inspection import Extent
from pastry.vectors.geometry.updates import BAND, ByModule, Comparison
from pastry.vectors.modules import OUTSIDE_LAYERS

Numbers = ByModule[float | None]


def size_map(name: str, table: ByModule[Extent], whole: Extent) -> Figure:
    """The RMS of a skill vector's elements by layer and module."""
    values: Numbers = {layer: {module: cell.rms for module, cell in row.items()} for layer, row in table.items()}
    power = math.floor(math.log10(max(_drawn(values), default=0) or 1))
    scaled = {layer: {module: value / 10**power for module, value in row.items()} for layer, row in values.items()}
    unit = f"10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    title = (
        f"skill vector {name}: RMS of its elements, in units of {unit}\n"
        f"n = {whole.elements:,}, norm {whole.norm:.3g}, exact zeros {100 * whole.sparsity:.1f} %"
    )
    return _heat_map(scaled, title, f"RMS / {unit}", 1, diverging=False, bold=set())


def cosine_map(a: str, b: str, table: ByModule[Comparison], whole: Comparison) -> Figure:
    """Cosines of two updates by layer and module; bold where they lie outside what random signs give."""
    values: Numbers = {layer: {module: cell.cosine for module, cell in row.items()} for layer, row in table.items()}
    limit = max(map(abs, _drawn(values)), default=0)
    decimals = min(4, max(2, 1 - math.floor(math.log10(limit)))) if limit else 2
    bold = {(layer, module) for layer, row in table.items() for module, cell in row.items() if cell.outside}
    if whole.cosine is None:
        total = "one of them is zero"
    else:
        total = f"whole: {whole.cosine:+.4f}, by chance within ±{BAND * whole.sign_sd:.4f}".replace("-", "−")
    title = f"cosine of {a}\nand {b}\nn = {whole.elements:,}; {total}\nbold: outside the 95 % that random signs give"
    return _heat_map(values, title, "cosine", decimals, diverging=True, bold=bold)


def save(figure: Figure, file: Path) -> None:
    """Write a picture in the format of the file's ending."""
    with mpl.rc_context(STYLE):
        figure.savefig(file, dpi=150, facecolor="white")


def _layers(table: Numbers) -> list[str]:
    """The rows of the picture: the layers, or what there is where a vector has none."""
    return [layer for layer in table if layer != OUTSIDE_LAYERS] or list(table)


def _drawn(table: Numbers) -> list[float]:
    return [value for layer in _layers(table) for value in table[layer].values() if value is not None]


def _heat_map(table: Numbers, title: str, label: str, decimals: int, *, diverging: bool, bold: set[tuple[str, str]]) -> Figure:
    layers = _layers(table)
    modules = list(dict.fromkeys(module for layer in layers for module in table[layer]))
    limit = max(map(abs, _drawn(table)), default=0) or 1.0
    colours, lowest = (_colours(("cold", "warm")), -limit) if diverging else (_colours(("cold",)), 0.0)
    cell_width = 0.3 + 0.07 * decimals
    width = max(5.0, cell_width * len(modules) + 1.6)
    title = "\n".join(textwrap.fill(line, int(13 * width), break_on_hyphens=False) for line in title.splitlines())
    outside = [f"{m} {_text(v, decimals)}" for m, v in table.get(OUTSIDE_LAYERS, {}).items() if OUTSIDE_LAYERS not in layers]
    note = textwrap.fill("outside the layers: " + ", ".join(outside), int(13 * width)) if outside else ""
    height = 0.22 * len(layers) + 0.065 * max(map(len, modules)) + 0.17 * (title.count("\n") + note.count("\n")) + 0.9
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, max(height, 2.2)), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(color=MUTED, labelcolor=INK, length=0)
        axes.spines[:].set_visible(False)
        numbers = np.array([[table[layer].get(module) for module in modules] for layer in layers], dtype=float)
        cells = np.ma.masked_invalid(numbers)
        image = axes.pcolormesh(cells, cmap=colours, vmin=lowest, vmax=limit, edgecolors=GRID, linewidth=0.5)
        for y, layer in enumerate(layers):
            for x, module in enumerate(modules):
                if module in table[layer]:
                    weight = "bold" if (layer, module) in bold else "normal"
                    text = _text(table[layer][module], decimals)
                    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, fontweight=weight)
        axes.set_xticks(np.arange(len(modules)) + 0.5, modules, rotation=90, fontsize=8)
        axes.set_yticks(np.arange(len(layers)) + 0.5, layers, fontsize=8)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("bottom")
        axes.set_xlabel(note, fontsize=8)
        axes.set_ylabel("layer")
        axes.invert_yaxis()
        figure.suptitle(title, fontsize=9)
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.ax.tick_params(color=MUTED, labelcolor=INK, labelsize=8)
        bar.outline.set_visible(False)
        bar.set_label(label)
    return figure


def _colours(ends: tuple[str, ...]) -> Colormap:
    """From transparent at 0 to a colour, or from one colour through it to the other."""
    steps = np.linspace(0 if len(ends) == 1 else -1, 1, 41)
    return ListedColormap([(*to_rgb(PALETTE[ends[0] if s < 0 else ends[-1]]), STRONGEST * abs(s)) for s in steps])


def _text(value: float | None, decimals: int) -> str:
    if value is None:
        return "–"
    rounded = f"{value:.{decimals}f}"
    return rounded.replace("-", "" if float(rounded) == 0 else "−")
