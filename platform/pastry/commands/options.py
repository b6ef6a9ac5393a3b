"""What several commands share: options, and how they say things."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from pastry.errors import Interrupted
from pastry.vectors.modules import Lambda, parse_lambda

if TYPE_CHECKING:
    from pastry.pipeline.runner import Run
    from pastry.vectors.shards import Spread

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, show what would be done, spend nothing.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that write shards, as Ray tasks on a shared file system.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def say(as_json: bool, document: dict, text: str) -> None:
    """The document on standard output, or the text that says the same to a person."""
    typer.echo(json.dumps(document, indent=1, default=str) if as_json else text)


def carry_out(run: Run, kind: str | None) -> bool:
    """Do the run's stages; False: there was nothing to do. Stopped by a signal, it says that the same command goes on."""
    try:
        return run.execute(kind)
    except Interrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on where this one stopped", err=True)
        raise typer.Exit(130) from None


def spread(workers: int) -> Spread | None:
    """Over Ray tasks where more than one process is wanted; Ray is not even imported otherwise."""
    if workers == 1:
        return None
    from pastry.pipeline import workers as ray_workers

    return ray_workers.spread(workers)


def skill_term(text: str) -> tuple[str, Lambda]:
    """("DIR", 0.8) for DIR:0.8; λ is 1 where none is given."""
    # The colon of models:/ is not the one in front of λ.
    scheme = "models:" if text.startswith("models:") else ""
    path, colon, lam = text.removeprefix(scheme).partition(":")
    return scheme + path, parse_lambda(lam, f"--skill {text}") if colon else 1.0
