"""`pastry rank`: which source is worth its RL? Predicted before any, and afterwards what the prediction was worth."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pastry.commands.options import AsJson, DryRun, carry_out, say
from pastry.errors import PastryError

if TYPE_CHECKING:
    from pastry.pipeline.runner import Run

NARROWEST = 118
"""Columns: with fewer the table would be hard to read."""


def rank(
    config: Annotated[Path, typer.Argument(help="YAML settings with a matrix group, for example jobs/lab_matrix.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: key.subkey=value.", metavar="[KEY=VALUE]...")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Rank skill sources by cheap signals before any RL is paid for, and say what RL would cost.

    Trains what only reads (the base, SFT on documents) and nothing else. After `pastry run` it also shows the measured order
    and how well each signal agreed with it.

    \b
    pastry rank jobs/lab_matrix.yaml
    pastry run jobs/lab_matrix.yaml 'sources=[drug]'     RL on the source of your choice
    """
    from pastry.config import load_config
    from pastry.pipeline.runner import Run
    from pastry.vectors.files import read_json

    run = Run(load_config(config, overrides or []))
    if run.config.matrix is None:
        raise PastryError(f"{config}: has no matrix group; for example matrix: {{ targets: [{run.config.target}] }}")
    if dry_run:
        from pastry.commands.plan import show_plan

        show_plan(run, "signals", as_json)
        return
    carry_out(run, "signals")
    document = read_json(run.path("signals") / "signals.json") | {"rl": _cost(run)}
    measured = read_json(run.path("matrix") / "matrix.json") if run.done("matrix") else None
    if as_json:
        say(True, document | {"measured": measured}, "")
        return
    _show_signals(document)
    _show_cost(document["rl"])
    if measured:
        _show_agreement(measured)
    typer.echo(f"all numbers: {run.path('matrix' if measured else 'signals')}")
    again = shlex.join(["pastry", "run", str(config), *(overrides or [])])
    if run.done("report"):
        typer.echo(f"next:   pastry report {run.directory}")
    elif measured or not document["predicted"]:
        typer.echo(f"next:   {again}")
    else:
        first = _ordered(document["predicted"])[0]
        typer.echo(f"next:   {again} 'sources=[{first}]'   (all of them: what was the prediction worth?)")


def _cost(run: Run) -> dict[str, dict[str, Any]]:
    """Source → what its RL takes: steps, tokens at most, seconds where it is done already."""
    from pastry.pipeline.forecast import forecast
    from pastry.pipeline.storage import storage

    stages = {
        source: [stage for stage in run.stages if stage.kind == "rl" and stage.name.startswith(f"rl/{source}/")]
        for source in run.config.sources
    }
    found = forecast(run.config, run.workers, [stage for each in stages.values() for stage in each], storage(run.config)).stages
    cost = {}
    for source, each in stages.items():
        work = [found[stage.name].work for stage in each]
        done = [run.marker(stage.name)["seconds"] for stage in each if run.done(stage.name)]
        cost[source] = {
            "steps": sum(w.steps for w in work),
            "tokens_at_most": sum(w.tokens for w in work),
            "seconds": sum(done) if len(done) == len(each) else None,
        }
    return cost


def _ordered(places: dict[str, int]) -> list[str]:
    return sorted(places, key=places.get)


def _print(table: Table) -> None:
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, NARROWEST)
    console.print(table)


def _show_signals(document: dict[str, Any]) -> None:
    entries = document["signals"]
    title = f"predicted for {', '.join(document['targets'])}; mean over targets, higher is better"
    names = [entry["name"].replace("_", "\n") for entry in entries]
    table = Table("place", "source", *names, title=title, box=box.SIMPLE, pad_edge=False)
    for source in _ordered(document["predicted"]) or document["sources"]:
        rows = [entry["values"].get(source, {}).values() for entry in entries]
        cells = [f"{sum(row) / len(row):.3g}" if row else "–" for row in rows]
        table.add_row(str(document["predicted"].get(source, "–")), source, *cells)
    _print(table)
    for entry in entries:
        typer.echo(f"{entry['name']}: {entry['meaning']}")
        for why in dict.fromkeys(entry["absent"].values()):
            typer.echo(f"  – : {why}")


def _show_cost(cost: dict[str, dict[str, Any]]) -> None:
    each = "; ".join(
        f"{source} {found['steps']} steps, ≤ {found['tokens_at_most']:,} tokens"
        + (f" (done: {found['seconds']:.0f} s)" if found["seconds"] else "")
        for source, found in cost.items()
    )
    typer.echo(f"RL would cost: {each}")


def _show_agreement(measured: dict[str, Any]) -> None:
    rows = measured["ranking"]
    places = "; ".join(f"{row['measured_rank']} {row['source']} {100 * row['mean_gain']:+.1f}" for row in rows)
    typer.echo(f"\nmeasured at λ = {measured['lambda']:g}, by place within targets, with the mean gain in points: {places}")
    differ = "; ".join(f"{target} {p:.2g}" for target, p in measured["sources_differ_p"].items() if p is not None)
    typer.echo(f"do the sources differ at all? p that they are equal (Cochran's Q): {differ}")
    table = Table("signal", "ρ within a target [95 %]", "p", "pairs", "verdict", box=box.SIMPLE, pad_edge=False)
    why: dict[str, list[str]] = {}
    for entry in measured["signals"]:
        found = entry["agreement"]
        rho = "–" if found["rho"] is None else f"{found['rho']:+.2f}"
        rho += "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
        table.add_row(entry["name"], rho, "–" if found["p"] is None else f"{found['p']:.2g}", str(found["n"]), found["verdict"])
        why.setdefault(found["reason"], []).append(entry["name"])
    _print(table)
    for reason, names in why.items():
        typer.echo(f"{', '.join(names)}: {reason}")
