"""A graph of boxes and arrows, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass

CHARACTER, LINE, GAP = 6.6, 15, 28
"""Pixels: a character’s width at 12 px, a line’s height (also in macros.html.j2), the space between two rows of boxes."""


@dataclass(frozen=True)
class Node:
    """A box of the graph, drawn below those named in `inputs`."""

    name: str
    lines: tuple[str, ...]
    """The first is the title; up to three."""
    inputs: tuple[str, ...]
    look: str = ""
    """CSS class."""


@dataclass(frozen=True)
class Box:
    """x and y are its upper left corner."""

    x: float
    y: float
    node: Node


@dataclass(frozen=True)
class Graph:
    """Laid out in pixels; an arrow is an SVG path."""

    width: float
    height: float
    box_width: float
    box_height: float
    boxes: list[Box]
    arrows: list[str]


def layout(nodes: list[Node]) -> Graph:
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
        parents[node.name] = [name for name in known if name not in further]
        behind[node.name] = further | set(known)
        depth[node.name] = 1 + max((depth[name] for name in known), default=-1)

    # A slot is (stage, level): the stage's own box at its depth, its passing arrow at the levels below.
    levels: list[dict[str, None]] = [{} for _ in range(1 + max(depth.values(), default=0))]
    for name in depth:
        levels[depth[name]][name] = None
        for parent in parents[name]:
            for level in range(depth[parent] + 1, depth[name]):
                levels[level][parent] = None

    lines = [line for node in nodes for line in node.lines]
    box_width = 24 + CHARACTER * max(map(len, lines), default=0)
    box_height = 10 + LINE * max((len(node.lines) for node in nodes), default=1)
    step = box_height + GAP
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
    boxes = [Box(round(x[n.name, depth[n.name]] - left - box_width / 2, 1), 2 + step * depth[n.name], n) for n in nodes]
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
