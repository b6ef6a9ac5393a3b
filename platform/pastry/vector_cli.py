"""The `pastry vector` commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pastry.vectors.modules import Lambda, parse_lambda

vector = typer.Typer(no_args_is_help=True, help="Skill vectors: cut one out, look at it, combine, inject it.")
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def say(as_json: bool, document: dict, text: str) -> None:
    """The document on standard output, or the text that says the same to a person."""
    typer.echo(json.dumps(document, indent=1, default=str) if as_json else text)


@vector.command()
def extract(
    end: Annotated[str, typer.Option(help="The checkpoint RL ended with: directory or models:/ URI.")],
    start: Annotated[str, typer.Option(help="The weights RL started from.")],
    out: Annotated[Path, typer.Option(help="New directory of the skill vector.")],
    name: Annotated[str, typer.Option(help="The skill's name in recipes.")] = "skill",
    base: Annotated[str | None, typer.Option(help="The base, for the cosine to the SFT update.")] = None,
    dtype: Annotated[str, typer.Option(help="Stored as float32, bfloat16 or float16; computed in float32.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """v = end − start, in float32."""
    from pastry.registry.resolve import local_path
    from pastry.vectors import extract as extracting

    base_path = local_path(base) if base else None
    manifest = extracting.extract(local_path(end), local_path(start), out, name=name, base=base_path, dtype=dtype)
    say(
        as_json,
        manifest.model_dump(exclude={"tensors"}),
        f"{out}: skill vector '{name}', norm {manifest.norm:.4g}, {len(manifest.tensors)} tensors"
        + (f", cosine to the SFT update {manifest.cosine_to_sft:+.4f}" if manifest.cosine_to_sft is not None else "")
        + f"\nnext: pastry vector inject --target MODEL --skill {out}:1.0 --out DIR",
    )


@vector.command()
def inject(
    target: Annotated[str, typer.Option(help="The model that has read the documents: directory or models:/ URI.")],
    skill: Annotated[list[str], typer.Option(help="DIR, DIR:λ or models:/name@alias:λ; may be given several times. λ: 1.")],
    out: Annotated[Path, typer.Option(help="New directory of the injected checkpoint.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the target's.")] = None,
    rounding: Annotated[
        str, typer.Option(help="nearest, stochastic, or auto: stochastic where nearest loses over 1 %.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of stochastic rounding.")] = 0,
    as_json: AsJson = False,
) -> None:
    """θ_target + Σ λ·v, written as an ordinary Hugging Face checkpoint."""
    from pastry.registry.resolve import local_path
    from pastry.vectors import inject as injecting

    terms = [skill_term(text) for text in skill]
    skills = [(local_path(path), lam) for path, lam in terms]
    result = injecting.inject(local_path(target), skills, out, dtype=dtype, rounding=rounding, seed=seed)
    ratio = "nothing injected (λ·v is zero)" if result.realised_ratio is None else f"realised ratio {result.realised_ratio:.4f}"
    say(
        as_json,
        result.model_dump(),
        f"{out}: {result.dtype}, rounding {result.rounding}, {ratio}; per tensor in {out}/inject.json",
    )


@vector.command()
def inspect(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")], as_json: AsJson = False
) -> None:
    """What a skill vector is: origin, size, norm per tensor."""
    from pastry.registry.resolve import local_path
    from pastry.vectors.skill import Skill

    manifest = Skill(local_path(skill)).manifest
    if as_json:
        say(True, manifest.model_dump(), "")
        return
    table = Table("tensor", "shape", "norm", "cosine to SFT", box=box.SIMPLE)
    for name, tensor in manifest.tensors.items():
        cosine = "" if tensor.cosine_to_sft is None else f"{tensor.cosine_to_sft:+.4f}"
        table.add_row(name, "×".join(map(str, tensor.shape)), f"{tensor.norm:.4g}", cosine)
    console = Console()
    console.print(table)
    for key, value in manifest.model_dump(exclude={"tensors", "architecture"}).items():
        console.print(f"{key}: {value}", highlight=False)


@vector.command()
def verify(skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")]) -> None:
    """Recompute every digest."""
    from pastry.registry.resolve import local_path
    from pastry.vectors.skill import Skill

    opened = Skill(local_path(skill))
    opened.verify()
    typer.echo(f"{skill}: {len(opened.tensors)} tensors as recorded")


def skill_term(text: str) -> tuple[str, Lambda]:
    """("DIR", 0.8) for DIR:0.8; λ is 1 where none is given."""
    # The colon of models:/ is not the one in front of λ.
    scheme = "models:" if text.startswith("models:") else ""
    path, colon, lam = text.removeprefix(scheme).partition(":")
    return scheme + path, parse_lambda(lam, f"--skill {text}") if colon else 1.0
