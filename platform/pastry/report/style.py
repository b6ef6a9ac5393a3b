"""How all of the report's figures look, and how they come onto the page."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, to_rgb
from matplotlib.figure import Figure

PALETTE = {
    "ink": "#1f2328",
    "muted": "#656d76",
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
MARKERS = "osD^vPX"
"""One more than there are colours: 42 series differ in one or the other, and the first six in both."""
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
NARROW = 4.5
"""Inches: the width of a figure that is read on a phone without scrolling."""
STRONGEST = 0.7
"""Opacity of a heat map's strongest cell: the number in it stays readable on either background."""


def series(i: int) -> dict[str, str]:
    """Colour and marker of the i-th series, wherever it is drawn."""
    return {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure (inches) with a single set of axes and a grid."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes, grid: bool = True) -> None:
    """No frame, no ticks; a grid behind the data."""
    # Ticks are made when the figure is drawn, perhaps outside rc_context: their colours are set here instead.
    axes.tick_params(color=MUTED, labelcolor=INK, length=0)
    axes.spines[:].set_visible(False)
    if grid:
        axes.set_axisbelow(True)
        axes.grid(color=GRID, linewidth=0.6)


def diverging() -> Colormap:
    """Opaque cold, through transparent at 0, to opaque warm: right on a light page and on a dark one."""
    steps = np.linspace(-1, 1, 41)
    return ListedColormap([(*to_rgb(PALETTE["cold" if s < 0 else "warm"]), STRONGEST * abs(s)) for s in steps])


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
