"""The `pastry vector` commands."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pastry.errors import PastryError
from pastry.vector_tables import progress_bar
from pastry.vectors.modules import Lambda, parse_lambda

if TYPE_CHECKING:
    from pastry.vectors.shards import Spread
    from pastry.vectors.vocabulary import SharedRows

vector = typer.Typer(no_args_is_help=True, help="Skill vectors: cut one out, look at it, combine, inject it.")
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, show what would be done, spend nothing.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that write shards, as Ray tasks on a shared file system.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


class Encoding(StrEnum):
    """How a skill vector's files hold its tensors."""

    sparse = "sparse-zstd"
    dense = "dense"


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
    workers: Workers = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """v = end − start, in float32.

    Two PEFT LoRA adapters on one base, or one and its base, give a vector in low-rank factors: --base is then the
    checkpoint that the adapters were trained on.
    """
    from pastry.registry.resolve import local_path
    from pastry.vectors import extract as extracting
    from pastry.vectors.adapter import is_adapter
    from pastry.vectors.extract_lora import extract_adapters

    base_path = local_path(base) if base else None
    ends = local_path(end), local_path(start)
    if any(map(is_adapter, ends)):
        if dtype != "float32":
            raise PastryError(f"--dtype {dtype}: low-rank factors are stored in float32; leave --dtype out for adapters")
        factored = extract_adapters(*ends, out, name=name, base=base_path, dry_run=dry_run)
        if factored is None:
            say(as_json, {"checked": True}, f"{end} and {start} fit, as LoRA adapters; {out} would be written, nothing was")
            return
        changed = [tensor for tensor in factored.tensors.values() if tensor.terms]
        ranks = {sum(rank for rank, _ in tensor.terms) for tensor in changed}
        say(
            as_json,
            factored.model_dump(exclude={"tensors"}),
            f"{out}: skill vector '{name}' out of LoRA adapters, in low-rank factors: norm {factored.norm:.4g}, "
            f"{len(changed)} of {len(factored.tensors)} tensors changed"
            + (f", rank {min(ranks)} to {max(ranks)}" if len(ranks) > 1 else f", rank {ranks.pop()}" if ranks else "")
            + f"\nnext: pastry vector inject --target MODEL --skill {out}:1.0 --out DIR",
        )
        return
    options = {"name": name, "base": base_path, "dtype": dtype, "dry_run": dry_run, "spread": spread(workers)}
    with progress_bar("extracting") as progress:
        manifest = extracting.extract(*ends, out, **options, progress=progress)
    if manifest is None:
        say(as_json, {"checked": True}, f"{end} and {start} fit together; {out} would be written, nothing was")
        return
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
    vocab: Annotated[
        str, typer.Option(help="intersect: for a target with other tokens, change only the rows of those that both have.")
    ] = "same",
    other_base: Annotated[bool, typer.Option("--other-base", help="Try a vector on a model of another base.")] = False,
    workers: Workers = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """θ_target + Σ λ·v, written as an ordinary Hugging Face checkpoint.

    λ is a number, or one for each module group: --skill DIR:attention=1,mlp[0-11]=0.5~1,all=0 (groups: attention, mlp,
    embeddings, norms, all, or /regular expression/; layers in brackets; A~B goes from A to B over the layers; the first
    rule that matches a tensor counts).
    """
    from pastry.registry.resolve import local_path
    from pastry.vectors import inject as injecting

    terms = [skill_term(text) for text in skill]
    skills = [(local_path(path), lam) for path, lam in terms]
    options = {"dtype": dtype, "rounding": rounding, "seed": seed, "vocab": vocab, "other_base": other_base}
    with progress_bar("injecting") as progress:
        result = injecting.inject(
            local_path(target), skills, out, **options, dry_run=dry_run, spread=spread(workers), progress=progress
        )
    if result is None:
        say(as_json, {"checked": True}, f"{', '.join(skill)} fit {target}; {out} would be written, nothing was")
        return
    ratio = "nothing injected (λ·v is zero)" if result.realised_ratio is None else f"realised ratio {result.realised_ratio:.4f}"
    say(
        as_json,
        result.model_dump(),
        f"{out}: {result.dtype}, rounding {result.rounding}, {ratio}; per tensor in {out}/inject.json"
        + "".join(f"\n{rows(each.name, each.shared_rows)}" for each in result.skills if each.shared_rows),
    )


@vector.command()
def inspect(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")],
    rank: Annotated[bool, typer.Option("--rank", help="Effective and stable rank of each matrix: an SVD each.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Picture of RMS by layer and module: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a skill vector is: origin, sizes, norm, exact zeros; per layer and module.

    Read from skill.json without touching the tensors; --rank reads them.
    """
    from pastry import vector_tables as tables
    from pastry.registry.resolve import local_path
    from pastry.vectors import geometry, inspection, subspaces
    from pastry.vectors.lowrank import open_skill

    tables.check_picture(plot)
    opened = open_skill(local_path(skill))
    ranks = None
    if rank:
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


@vector.command()
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
    from pastry import vector_tables as tables
    from pastry.vectors import geometry, subspaces

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


@vector.command()
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

    from pastry import vector_tables as tables
    from pastry.registry.resolve import local_path
    from pastry.vectors import combine as combining

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
            progress=progress,
            **{"agree": agree, "of": of, "density": density, "drop": drop, "seed": seed},
        )
    share = manifest.non_zero_share
    say(
        as_json,
        {**manifest.model_dump(exclude={"tensors"}), "non_zero_share": share},
        f"{out}: skill vector '{name}', {method} of {len(skill)}, norm {manifest.norm:.4g}, {share:.1%} of the weights not zero"
        f"\nnext: pastry vector inject --target MODEL --skill {out}:1.0 --out DIR",
    )


@vector.command()
def verify(
    directory: Annotated[str, typer.Argument(help="Skill vector or injected checkpoint: directory or models:/ URI.")],
    fingerprint: Annotated[str | None, typer.Option(help="blake3:…, that the tensors of any checkpoint must have.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every digest and compare it with skill.json or inject.json; exit code 2 if anything differs."""
    from dataclasses import asdict

    from pastry import vector_tables as tables
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


@vector.command()
def compress(
    skill: Annotated[str, typer.Argument(help="Skill vector: directory or models:/ URI.")],
    out: Annotated[Path, typer.Option(help="New directory of the rewritten skill vector.")],
    to: Annotated[Encoding, typer.Option(help="sparse-zstd, or dense for the way back.")] = Encoding.sparse,
    as_json: AsJson = False,
) -> None:
    """Rewrite a skill vector smaller (or dense again): bit for bit the same numbers, and the same fingerprint."""
    from pastry.registry.resolve import local_path
    from pastry.vectors import compression

    rewrite = compression.compress if to is Encoding.sparse else compression.decompress
    sizes = rewrite(local_path(skill), out)
    ratio = "" if sizes.ratio is None else f", ratio {sizes.ratio:.1f}"
    say(
        as_json,
        sizes.model_dump(),
        f"{out}: {to.value}; dense {sizes.dense_bytes:,} bytes, compressed {sizes.compressed_bytes:,} bytes{ratio}",
    )


@vector.command("to-lora")
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
    from pastry.vectors import lora

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


def spread(workers: int) -> Spread | None:
    """Over Ray tasks where more than one process is wanted; Ray is not even imported otherwise."""
    if workers == 1:
        return None
    from pastry.pipeline import workers as ray_workers

    return ray_workers.spread(workers)


def rows(name: str, shared: SharedRows) -> str:
    """What --vocab intersect did, in a line."""
    return (
        f"{name}: {shared.shared} rows of the embeddings are of shared tokens ({shared.moved} under another id); "
        f"{shared.untouched} of the target stay as they are, {shared.dropped} of the skill have no place in it"
    )


def skill_term(text: str) -> tuple[str, Lambda]:
    """("DIR", 0.8) for DIR:0.8; λ is 1 where none is given."""
    # The colon of models:/ is not the one in front of λ.
    scheme = "models:" if text.startswith("models:") else ""
    path, colon, lam = text.removeprefix(scheme).partition(":")
    return scheme + path, parse_lambda(lam, f"--skill {text}") if colon else 1.0
