"""`pastry vector combine`, `compress` and `to-lora`: one vector out of others, or in another form."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pastry.commands.options import AsJson, DryRun, Workers, say, skill_term, spread

app = typer.Typer()


class Encoding(StrEnum):
    """How a skill vector's files hold its tensors."""

    sparse = "sparse-zstd"
    dense = "dense"


@app.command()
def combine(
    skill: Annotated[list[str], typer.Option(help="DIR or models:/name@alias, several times; DIR:weight for sum and dare.")],
    method: Annotated[str, typer.Option(help="sum, mean, consensus, complement, ties or dare; see above.")],
    out: Annotated[Path, typer.Option(help="New directory of the combined skill vector.")],
    name: Annotated[str, typer.Option(help="The skill's name in recipes.")] = "combined",
    agree: Annotated[int | None, typer.Option(help="consensus, complement: signs that must agree; default: all.")] = None,
    of: Annotated[str | None, typer.Option(help="complement: what is left of the mean (default) or the first skill.")] = None,
    density: Annotated[float | None, typer.Option(help="ties: share that each tensor keeps; default: 0.2.")] = None,
    drop: Annotated[float | None, typer.Option(help="dare: probability of dropping a weight; default: 0.9.")] = None,
    seed: Annotated[int | None, typer.Option(help="dare: of the random mask; default: 0.")] = None,
    orthogonal_to: Annotated[
        str | None,
        typer.Option(help="Take out the component along an update: START..END, for instance BASE..SFT, or a skill vector."),
    ] = None,
    orthogonal_per: Annotated[
        str, typer.Option(help="Take it out of each tensor by itself, or of the vector as one: tensor or whole.")
    ] = "tensor",
    match_norm: Annotated[
        bool, typer.Option("--match-norm", help="At the end, scale to the mean of the skills' norms, so that λ compares.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Stored as float32, bfloat16 or float16; computed in float32.")] = "float32",
    workers: Workers = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make one skill vector of several, without any training.

    \b
    sum         Σ weight·v
    mean        the average
    consensus   the average where the signs agree, 0 elsewhere: what the skills share
    complement  what consensus leaves out (to see what it is worth)
    ties        trim, elect the sign, average those that agree (arXiv 2306.01708)
    dare        drop at random and rescale, then sum (arXiv 2311.03099); weights 1/n give the average

    The result is an ordinary skill vector. Of five sources what at least four
    agree on, at the norm of a single one:

    \b
    pastry vector combine --skill moon --skill planet --skill ship --skill port --skill mine \\
        --method consensus --agree 4 --match-norm --out shared
    """
    from functools import partial

    from pastry.commands import tables
    from pastry.registry.resolve import local_path
    from pastry.vectors.algebra import combine as combining

    skills = [(local_path(path), weight) for path, weight in map(skill_term, skill)]
    update = partial(tables.open_update, orthogonal_to) if orthogonal_to else None
    with tables.progress_bar("combining") as progress:
        manifest = combining.combine(
            skills,
            out,
            name=name,
            method=method,
            orthogonal_to=update,
            orthogonal_per=orthogonal_per,
            match_norm=match_norm,
            dtype=dtype,
            dry_run=dry_run,
            spread=spread(workers),
            progress=progress,
            **{"agree": agree, "of": of, "density": density, "drop": drop, "seed": seed},
        )
    if manifest is None:
        say(as_json, {"checked": True}, f"the {len(skill)} skills fit together; {out} would be written, nothing was")
        return
    share = manifest.non_zero_share
    say(
        as_json,
        {**manifest.model_dump(exclude={"tensors"}), "non_zero_share": share},
        f"{out}: skill vector '{name}', {method} of {len(skill)}, norm {manifest.norm:.4g}, {share:.1%} of the weights not zero"
        f"\nnext: pastry vector inject --target MODEL --skill {out}:1.0 --out DIR",
    )


@app.command()
def compress(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")],
    out: Annotated[Path, typer.Option(help="New directory of the rewritten skill vector.")],
    to: Annotated[Encoding, typer.Option(help="sparse-zstd, or dense for the way back.")] = Encoding.sparse,
    as_json: AsJson = False,
) -> None:
    """Rewrite a skill vector smaller (or dense again): bit for bit the same numbers, and the same fingerprint."""
    from pastry.registry.resolve import local_path
    from pastry.vectors.compression import compress as compression

    rewrite = compression.compress if to is Encoding.sparse else compression.decompress
    sizes = rewrite(local_path(skill), out)
    ratio = "" if sizes.ratio is None else f", ratio {sizes.ratio:.1f}"
    say(
        as_json,
        sizes.model_dump(),
        f"{out}: {to.value}; dense {sizes.dense_bytes:,} bytes, compressed {sizes.compressed_bytes:,} bytes{ratio}",
    )


@app.command("to-lora")
def to_lora(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")],
    out: Annotated[Path, typer.Option(help="New directory of the PEFT adapter.")],
    rank: Annotated[int | None, typer.Option(help="Of every layer's factors.")] = None,
    energy: Annotated[float | None, typer.Option(help="Instead: the smallest rank that keeps this share of ‖v‖².")] = None,
    lam: Annotated[float, typer.Option(help="λ: the strength at which the adapter loads; lora_alpha is λ·rank.")] = 1.0,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Also where norms, biases, embeddings or lm_head hold over 1 % of ‖v‖².")
    ] = False,
    base_model: Annotated[str | None, typer.Option(help="Written as base_model_name_or_path.")] = None,
    seed: Annotated[int, typer.Option(help="Of the projection of very large matrices.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The nearest LoRA adapter of a given rank, for PEFT, vLLM and Ray Serve LLM.

    Another λ later: PEFT's set_scale or add_weighted_adapter; for vLLM export again, or edit lora_alpha to λ·rank.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pastry.registry.resolve import local_path
    from pastry.vectors.lora import export as lora

    report = lora.to_lora(
        local_path(skill), out, rank=rank, energy=energy, lam=lam, leave_out=leave_out, base_model=base_model, seed=seed
    )
    if not as_json:
        table = Table("linear layer", "energy kept", box=box.SIMPLE)
        for module, kept in report.modules.items():
            table.add_row(module, "v is zero" if kept is None else f"{kept:.2%}")
        Console().print(table)
    left_out = "".join(f"\nleft out: {group}, {share:.4%} of ‖v‖²" for group, share in report.left_out.items())
    say(
        as_json,
        report.model_dump(),
        f"{out}: LoRA adapter of '{report.skill}', rank {report.rank}, λ {report.lam:g}, keeps {report.energy:.2%} of ‖v‖²"
        f"{left_out}\nper layer in {out}/{lora.REPORT_FILE}",
    )
