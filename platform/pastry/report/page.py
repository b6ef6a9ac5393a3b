"""The HTML report: one page that needs nothing else, in light and dark, on paper and on a phone."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pastry.report import formatting
from pastry.report.advice import advise
from pastry.report.data import ReportData
from pastry.report.lineage import all_stages, chain
from pastry.report.measured import Difference
from pastry.report.plots import figures, rl_stages
from pastry.report.style import PALETTE, to_svg

PANELS = {
    "next": ("What to do", "What to do next"),
    "results": ("Results", "Results"),
    "lambda": ("λ", "How much skill: λ"),
    "confirmation": ("Confirmation", "Confirmed on fresh questions?"),
    "pareto": ("Cost", "What injection costs"),
    "sources": ("Sources", "Which source for which target"),
    "ablation": ("Modules", "Where the skill lives"),
    "precision": ("Precision", "Precision: what arrived"),
    "orthogonality": ("Orthogonality", "Orthogonality: knowledge and skill"),
    "training": ("Training", "Training"),
    "lineage": ("Lineage", "Lineage"),
    "timings": ("Timings", "Timings"),
    "about": ("This run", "About this run"),
}
"""Id of a section, and its file in panels/ → its name in the navigation and its heading."""
COSINES = {
    "sft_source_rl": "source's ΔSFT · skill vector",
    "sft_target_rl": "target's ΔSFT · skill vector",
    "sft_sft": "source's ΔSFT · target's ΔSFT",
}
"""What the three global cosines compare."""
WORST = 10
"""Tensors of the precision panel that are named."""


def render(data: ReportData) -> str:
    """The report as one self-contained HTML page; the same data gives the same text."""
    rows = {row.name: row for row in data.rows}
    drawn = figures(data)
    absent = {
        "confirmation": not data.search.confirmation,
        "pareto": not data.search.front,
        "sources": not data.matrix,
        "ablation": not data.ablation,
        "training": not data.curves,
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = ("percent", "points", "interval", "decimals", "lam", "duration", "short")
    environment.filters |= {name: getattr(formatting, name) for name in written}
    ratios = [(name, tensor) for name, tensor in data.injected.tensors.items() if tensor.realised_ratio is not None]
    return environment.get_template("page.html.j2").render(
        data=data,
        rows=rows,
        best=data.best,
        panels={name: titles for name, titles in PANELS.items() if not absent.get(name)},
        advice=advise(data),
        verdict=verdict(data.best.gain),
        facts=sorted({count for row in data.rows for count in row.by_facts}),
        modes=list(dict.fromkeys(mode for row in data.rows for mode in row.modes)),
        # Matplotlib escapes the names it draws; nothing else on the page is trusted.
        figures={name: Markup(to_svg(figure, name)) for name, figure in drawn.items()},
        rl_stages=rl_stages(data),
        cosines={label: data.cosines[name] for name, label in COSINES.items() if name in data.cosines},
        worst=sorted(ratios, key=lambda item: -abs(item[1].realised_ratio - 1))[:WORST],
        total=sum(data.seconds.values()),
        chain=chain(data),
        stages=all_stages(data),
        palette=PALETTE,
    )


def verdict(gain: Difference) -> str:
    """What the claimed gain's interval allows to say."""
    if gain.low > 0:
        return "The interval lies above zero: on this target and seed the skill helps."
    if gain.high < 0:
        return "The interval lies below zero: on this target and seed the skill hurts."
    return "The interval includes zero: this run shows neither gain nor loss."
