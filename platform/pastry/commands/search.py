"""`pastry search`: which skill at which λ? The space beforehand, the winner and what it costs afterwards."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pastry.commands.options import AsJson, DryRun, carry_out, say
from pastry.pipeline.space import lambda_words

SHOWN = 5
"""Trials in the table beside those on the Pareto front."""


def search(
    config: Annotated[Path, typer.Argument(help="YAML settings of a run, for example jobs/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: key.subkey=value.", metavar="[KEY=VALUE]...")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Try sources, combinations and λ on validation questions, with whatever must be done before; confirm the winner.

    \b
    pastry search jobs/quickstart.yaml --dry-run
    pastry search jobs/quickstart.yaml 'search.lambdas={low: 0, high: 2}' search.groups=[attention,mlp] search.trials=64
    pastry search jobs/quickstart.yaml 'search.registry={tags: {team: maps}}' search.combinations=[ties,linear]
    """
    from pastry.commands.plan import show_plan
    from pastry.config import load_config
    from pastry.pipeline.runner import Run
    from pastry.pipeline.space_forecast import space_forecast
    from pastry.vectors.files import read_json

    run = Run(load_config(config, overrides or []))
    typed = shlex.join([str(config), *(overrides or [])])
    if dry_run:
        space = space_forecast(run)
        show_plan(run, "search", as_json, {"space": space})
        if not as_json:
            _show_space(space)
            typer.echo(f"next:   pastry search {typed}")
        return
    if not carry_out(run, "search"):
        typer.echo(f"everything is done already: {run.directory}", err=as_json)
    place = run.path("search")
    found = read_json(place / "search.json")
    if as_json:
        say(True, run.marker("search") | {"search": found}, "")
        return
    _show_trials(found)
    _show_confirmation(found)
    for line in (
        f"all trials: {place / 'search.json'}",
        f"the winner: {place / 'winner'}",
        f"next:   pastry run {typed}    the result table on test questions, the report, the registry",
    ):
        typer.echo(line)


def _show_space(space: dict[str, Any]) -> None:
    subsets = " → ".join(map(str, space["subsets"]))
    typer.echo(f"vectors: {', '.join(space['vectors'])}")
    typer.echo(f"combinations: {', '.join(space['combinations']) or 'none: they take two sources'}")
    typer.echo(f"λ: {space['lambdas']}")
    typer.echo(
        f"{space['trials']} trials ({space['method']}), {space['concurrency']} at a time, each on {subsets} validation "
        f"questions, {space['retention_questions']} about what the base knew, {space['documents']} documents"
    )
    held = f"; a worker holds {space['memory'] / 1e6:,.0f} MB of weights" if space["memory"] else ""
    pace = f"; about {space['seconds']:.0f} s, as fast as the last search here" if space["seconds"] else ""
    typer.echo(f"at most {space['answers']:,} answers, {space['tokens']:,} tokens{held}{pace}")


def _show_trials(found: dict[str, Any]) -> None:
    complete = [trial for trial in found["trials"] if trial["complete"]]
    ranked = sorted(complete, key=lambda trial: trial["objective"], reverse=True)
    shown = [trial for index, trial in enumerate(ranked) if index < SHOWN or trial["pareto"]]
    table = Table("source", "λ", box=box.SIMPLE, pad_edge=False)
    for title in ("accuracy % [95 %]", "perplexity", "kept %", "objective", "Pareto"):
        table.add_column(title, justify="right")
    table.add_row("the target alone", "0", *_cells(found["reference"]), "", "")
    for trial in shown:
        best = trial["id"] == found["best"]["id"]
        cells = (*_cells(trial), f"{trial['objective']:.3f}", "●" if trial["pareto"] else "")
        table.add_row(trial["source"], lambda_words(trial["lambda"]), *cells, style="bold" if best else "")
    console = Console(highlight=False)
    console.print(table)
    stopped = len(found["trials"]) - len(complete)
    rest = f"{len(found['trials'])} trials" + (f", {stopped} stopped early" if stopped else "")
    rest += f", {len(found['failed'])} FAILED" if found["failed"] else ""
    console.print(f"{rest}; kept: right answers about what the base knew; ●: no trial is better in one and worse in none")


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    return (
        f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
        f"{row['perplexity']:.3f}" if row["perplexity"] else "",
        f"{100 * row['retention']['accuracy']:.0f}" if row["retention"] else "",
    )


def _show_confirmation(found: dict[str, Any]) -> None:
    best, said = found["best"], found["confirmation"]
    fresh, difference = said["fresh"], {key: 100 * value for key, value in said["difference"].items()}
    typer.echo(
        f"best: {best['source']} at λ = {lambda_words(best['lambda'])}, accuracy {100 * best['accuracy']:.1f} % "
        f"(n = {best['n']}); on {fresh['n']} questions it never saw {100 * fresh['accuracy']:.1f} % "
        f"[{100 * fresh['low']:.1f}, {100 * fresh['high']:.1f}], difference "
        f"{difference['mean']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
    )
    if said["overfit"]:
        typer.echo("OVER-FITTED: worse on fresh questions than chance explains; more validation questions or fewer trials help")
