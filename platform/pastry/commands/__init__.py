"""The `pastry vector` commands."""

import typer

from pastry.commands import change, look, make, registry

vector = typer.Typer(no_args_is_help=True, help="Skill vectors: cut one out, look at it, combine, inject, register it.")
for part in (make, look, change, registry):
    vector.add_typer(part.app)
