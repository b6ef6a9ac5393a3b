"""`pastry vector inspect`, `compare` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pastry.commands.options import AsJson, say
from pastry.errors import PastryError

app = typer.Typer()


@app.command()
def inspect(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")],
    rank: Annotated[bool, typer.Option("--rank", help="Effective and stable rank of each matrix: an SVD each.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of RMS by layer and module: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a skill vector is: origin, sizes, norm, exact zeros; per layer and module.

    Read from skill.json without touching the tensors; --rank reads them.
    """
    from pastry.commands import tables
    from pastry.registry.resolve import local_path
    from pastry.vectors.geometry import inspection, subspaces
    from pastry.vectors.geometry import updates as geometry
    from pastry.vectors.lora.factored import open_skill

    tables.check_picture(plot)
    opened = open_skill(local_path(skill))
    ranks = None
    if rank:
        opened.verify()
        with tables.progress_bar("singular values") as progress:
            ranks = subspaces.ranks(geometry.SkillUpdate(opened.path), progress)
    if plot:
        from pastry.report import vector_plots

        sizes = inspection.extents(opened)
        vector_plots.save(vector_plots.size_map(opened.manifest.name, sizes, inspection.whole(sizes)), plot)
    if as_json:
        say(True, inspection.document(opened) | ({"ranks": ranks} if ranks is not None else {}), "")
    else:
        tables.show_inspection(opened, ranks)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A skill vector (directory or models:/ URI), or START..END.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one of the same architecture.")],
    beside: Annotated[str | None, typer.Option(metavar="C", help="A third update; cos(A, C) is shown too, for scale.")] = None,
    angles: Annotated[int | None, typer.Option(min=1, metavar="R", help="Compare R leading singular directions too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the cosines: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """The cosine of two updates, whole and per layer and module, with what chance would give.

    START..END is what training changed between two checkpoints: BASE..SFT is the SFT update.
    Is the skill orthogonal to what SFT wrote? With two SFT updates for scale:

    pastry vector compare base..sft runs/demo/skill --beside base..sft_other --plot cosines.png
    """
    from pastry.commands import tables
    from pastry.vectors.geometry import subspaces
    from pastry.vectors.geometry import updates as geometry

    tables.check_picture(plot)
    left, right = tables.open_update(a), tables.open_update(b)
    third = tables.open_update(beside) if beside else None
    with tables.progress_bar("cosines") as progress:
        table = geometry.compare(left, right, progress)
        scale = geometry.compare(left, third, progress) if third else None
    shared = None
    if angles is not None:
        with tables.progress_bar("principal angles") as progress:
            shared = subspaces.overlaps(left, right, angles, progress)
    if plot:
        from pastry.report import vector_plots

        vector_plots.save(vector_plots.cosine_map(a, b, table, geometry.whole(table)), plot)
    if as_json:
        say(True, {"a": a, "b": b, "beside": beside, "angles": angles} | tables.comparison_document(table, scale, shared), "")
    else:
        tables.show_comparison([a, b] + ([beside] if beside else []), table, scale, shared)


@app.command()
def verify(
    directory: Annotated[str, typer.Argument(help="Skill vector or injected checkpoint: directory or models:/ URI.")],
    fingerprint: Annotated[str | None, typer.Option(help="blake3:…, that the tensors of any checkpoint must have.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every digest and compare it with skill.json or inject.json; exit code 2 if anything differs."""
    from dataclasses import asdict

    from pastry.commands import tables
    from pastry.registry.resolve import local_path
    from pastry.vectors import verify as verifying

    path = local_path(directory)
    with tables.progress_bar("digests") as progress:
        result = verifying.verify(path, fingerprint, progress)
    if result.problem and not as_json:
        raise PastryError(f"{path}: {result.problem}")
    say(as_json, {"path": str(path)} | asdict(result), f"{path}: {result.tensors} tensors as recorded in {result.recorded_in}")
    if result.problem:
        raise typer.Exit(2)
