"""The HTML report: one page that needs nothing else, in light and dark, on paper and on a phone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pastry.report.data import Difference, LineageNode, ReportData
from pastry.report.plots import PALETTE, figures, rl_stages, to_svg

COSINES = {
    "sft_source_rl": "source's ΔSFT · skill vector",
    "sft_target_rl": "target's ΔSFT · skill vector",
    "sft_sft": "source's ΔSFT · target's ΔSFT",
}
"""What the three global cosines compare."""


def render(data: ReportData) -> str:
    """The report as one self-contained HTML page; the same data gives the same text."""
    rows = {row.name: row for row in data.rows}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "to": interval,
        "cosine": cosine,
        "duration": duration,
        "short": short,
    }
    return environment.get_template("page.html.j2").render(
        data=data,
        rows=rows,
        best=rows["past@best"],
        verdict=verdict(rows["past@best"].gain),
        facts=sorted({count for row in data.rows for count in row.by_facts}),
        modes=list(dict.fromkeys(mode for row in data.rows for mode in row.modes)),
        # Matplotlib escapes the names it draws; nothing else on the page is trusted.
        figures={name: Markup(to_svg(figure, name)) for name, figure in figures(data).items()},
        rl_stages=rl_stages(data),
        cosines={label: data.cosines[name] for name, label in COSINES.items() if name in data.cosines},
        total=sum(data.seconds.values()),
        graph=lineage_graph(data.lineage),
        palette=PALETTE,
    )


def percent(share: float) -> str:
    """0.949 → "94.9"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """0.449 → "+44.9": percentage points, with a sign."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")


def interval(of: Difference) -> str:
    """A difference's interval in points: "+38.0 to +51.4"."""
    return f"{points(of.low)} to {points(of.high)}"


def cosine(value: float | None) -> str:
    """Three decimals; a dash where one of the two updates is zero."""
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    """7.3 → "7.3 s", 135 → "2 min 15 s", 7500 → "2 h 5 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def short(fingerprint: str | None) -> str:
    """The first twelve digits of a fingerprint."""
    return fingerprint.rpartition(":")[2][:12] if fingerprint else "–"


def verdict(gain: Difference) -> str:
    """What the claimed gain's interval allows to say."""
    if gain.low > 0:
        return "The interval lies above zero: on this target and seed the skill helps."
    if gain.high < 0:
        return "The interval lies below zero: on this target and seed the skill hurts."
    return "The interval includes zero: this run shows neither gain nor loss."


@dataclass(frozen=True)
class Box:
    """A stage in the drawn lineage; x and y are its upper left corner."""

    x: float
    y: float
    node: LineageNode


@dataclass(frozen=True)
class Graph:
    """The lineage, laid out in pixels; an arrow is an SVG path."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: list[Box]
    arrows: list[str]


def lineage_graph(nodes: list[LineageNode]) -> Graph:
    """A row of boxes for each depth, every arrow pointing down; `nodes` come after their inputs.

    An input that is also reached through another one gets no arrow (it would only hide the others). An arrow that
    passes rows keeps a narrow slot free in each, so that it crosses no box.
    """
    depth: dict[str, int] = {}
    behind: dict[str, set[str]] = {}
    parents: dict[str, list[str]] = {}
    for node in nodes:
        known = [name for name in node.inputs if name in depth]
        further = set().union(*(behind[name] for name in known))
        parents[node.stage] = [name for name in known if name not in further]
        behind[node.stage] = further | set(known)
        depth[node.stage] = 1 + max((depth[name] for name in known), default=-1)

    # A slot is (stage, level): the stage's own box at its depth, its passing arrow at the levels below.
    levels: list[dict[str, None]] = [{} for _ in range(1 + max(depth.values(), default=0))]
    for name in depth:
        levels[depth[name]][name] = None
        for parent in parents[name]:
            for level in range(depth[parent] + 1, depth[name]):
                levels[level][parent] = None

    box_width, box_height, step = 24 + 6.6 * max((len(node.stage) for node in nodes), default=0), 38, 66
    x: dict[tuple[str, int], float] = {}
    for level, names in enumerate(levels):
        above = {
            name: [x[parent, level - 1] for parent in (parents[name] if depth[name] == level else [name])] for name in names
        }
        wanted = {name: sum(xs) / len(xs) if xs else 0.0 for name, xs in above.items()}
        right = None
        for name in sorted(names, key=wanted.__getitem__):
            half = (box_width + 16) / 2 if depth[name] == level else 12
            x[name, level] = wanted[name] if right is None else max(wanted[name], right + half)
            right = x[name, level] + half
        drift = sum(x[name, level] - wanted[name] for name in names) / max(1, len(names))
        for name in names:
            x[name, level] -= drift

    left = min((at - (box_width / 2 if depth[name] == level else 0) for (name, level), at in x.items()), default=0) - 2
    right = max((at + (box_width / 2 if depth[name] == level else 0) for (name, level), at in x.items()), default=0) + 2
    boxes = [Box(round(x[n.stage, depth[n.stage]] - left - box_width / 2, 1), 2 + step * depth[n.stage], n) for n in nodes]
    arrows = []
    for name in depth:
        for parent in parents[name]:
            xs = [round(x[parent, level] - left, 1) for level in range(depth[parent], depth[name])]
            xs.append(round(x[name, depth[name]] - left, 1))
            tops = [2 + step * level for level in range(depth[parent], depth[name] + 1)]
            path = f"M{xs[0]} {tops[0] + box_height}"
            for at, nxt, top, below in zip(xs, xs[1:], tops, tops[1:], strict=False):
                start, middle = top + box_height, (top + box_height + below) / 2
                path += f" L{at} {start} C{at} {middle} {nxt} {middle} {nxt} {below}"
            arrows.append(path)
    return Graph(round(right - left, 1), step * len(levels) - step + box_height + 4, box_width, box_height, boxes, arrows)
