"""The `pastry` command."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pastry.commands import submit, vector
from pastry.commands.fork import fork
from pastry.commands.options import AsJson, DryRun, carry_out, say
from pastry.commands.rank import rank
from pastry.commands.registry import lineage
from pastry.commands.search import search
from pastry.errors import PastryError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ConfigArgument = Annotated[Path, typer.Argument(help="YAML settings of a run, for example jobs/quickstart.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: key.subkey=value.", metavar="[KEY=VALUE]...")]


@app.callback()
def _pastry() -> None:
    """Parametric Skill Transfer on Ray: learn a skill once by RL, cut it out as a vector, inject it anywhere.

    Start with `make quickstart`, or: pastry run jobs/quickstart.yaml
    """


@app.command()
def run(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Do a whole run, or go on with one: finished stages are kept, changed ones are redone."""
    execute(config, overrides or [], None, dry_run, as_json)


@app.command()
def evaluate(config: ConfigArgument, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Score every row of the result table on test questions, with whatever must be done before."""
    execute(config, overrides or [], "evaluate", dry_run, as_json)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="A run's directory, for example runs/quickstart.")], as_json: AsJson = False
) -> None:
    """Show a finished run's result table and where its HTML page is."""
    show_result(directory, as_json)


@app.command()
def serve(
    config: Annotated[Path | None, typer.Argument(help="YAML settings; without it the quickstart's models.")] = None,
) -> None:
    """Answer OpenAI-compatible requests; the model's name is a recipe: target, target+skill, target+skill:0.8."""
    from pastry_serve.app import run as run_server
    from pastry_serve.config import load_serve_config

    run_server(load_serve_config(config), blocking=True)


def execute(config_path: Path, overrides: list[str], kind: str | None, dry_run: bool, as_json: bool) -> None:
    """Run a config's stages (those of a kind with their inputs, or all) and show where that led."""
    from pastry.config import load_config
    from pastry.pipeline.runner import Run

    wanted = Run(load_config(config_path, overrides))
    if dry_run:
        from pastry.commands.plan import show_plan

        show_plan(wanted, kind, as_json)
        return
    if not carry_out(wanted, kind):
        typer.echo(f"everything is done already: {wanted.directory}", err=as_json)
    if kind in (None, "report"):
        show_result(wanted.directory, as_json)
    elif as_json:
        say(True, {stage.name: wanted.marker(stage.name) for stage in wanted.wanted(kind) if stage.kind == kind}, "")
    else:
        for stage in wanted.wanted(kind):
            if stage.kind == kind:
                typer.echo(f"{stage.name}: {wanted.path(stage.name)}")


for command in (rank, search, lineage, fork):
    app.command()(command)
app.add_typer(submit.app)
app.add_typer(vector, name="vector")


def show_result(directory: Path, as_json: bool) -> None:
    """The result table of a finished run."""
    from pastry.report.formatting import lam
    from pastry.vectors.files import read_json

    if not (directory / "result.json").is_file():
        raise PastryError(f"{directory}: no result.json: this run has not been finished; pastry run CONFIG goes on with it")
    result = read_json(directory / "result.json")
    if as_json:
        say(True, result, "")
        return
    title = f"{', '.join(result['sources'])} → {result['target']}, λ = {lam(result['lambda_best'])} chosen on validation"
    table = Table(
        "row", "accuracy % [95 %]", "gain over target_sft", "form", "mode", title=title, box=None, padding=(0, 2, 0, 0)
    )
    for row in result["rows"]:
        gain = {key: 100 * value for key, value in row["gain"].items()} if row["gain"] else None
        mode, share = max(row["modes"].items(), key=lambda item: item[1])
        table.add_row(
            row["name"],
            f"{100 * row['accuracy']:5.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]",
            f"{gain['mean']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]" if gain else "",
            f"{100 * row['well_formed']:.0f}",
            f"{mode} {100 * share:.0f}",
        )
    console = Console()
    console.print(table)
    if result["gate"] and not result["gate"]["gate_passed"]:
        console.print("the base MISSED its gate: RL may not have found the skill; pretrain.steps is the setting to raise")
    console.print("form: % of well-formed answers; mode: the commonest way of answering and its %")
    console.print(
        f"n = {result['rows'][0]['n']} test questions, seed {result['seed']}, {sum(result['seconds'].values()):.0f} s of stages"
    )
    console.print(f"report: {(directory / 'report.html').absolute()}", highlight=False, soft_wrap=True)
    console.print("next:   pastry serve", highlight=False)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, no traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a full disk, as a traceback; the outbox says it
    try:
        app()
    except PastryError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def job(kind: str | None) -> None:
    """What a script in jobs/ runs: `python jobs/rl.py --config FILE [key=value …] [--dry-run]`."""
    name = Path(sys.argv[0]).stem

    @app.command(name=f"job-{name}", hidden=True)
    def _job(
        config: Annotated[Path, typer.Option("--config", help="YAML settings of a run.")],
        overrides: Overrides = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        execute(config, overrides or [], kind, dry_run, as_json)

    sys.argv.insert(1, f"job-{name}")
    main()


if __name__ == "__main__":
    main()
