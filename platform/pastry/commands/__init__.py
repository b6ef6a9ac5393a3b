"""The `pastry vector` commands."""

import typer

from pastry.commands import change, look, make

vector = typer.Typer(no_args_is_help=True, help="Skill vectors: cut one out, look at it, combine, inject it.")
for part in (make, look, change):
    vector.add_typer(part.app)
