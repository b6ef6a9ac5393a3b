"""`pastry vector extract` and `inject`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pastry.commands.options import AsJson, DryRun, Workers, say, skill_term, spread
from pastry.commands.tables import progress_bar, show_arrived
from pastry.errors import PastryError

if TYPE_CHECKING:
    from pastry.vectors.vocabulary import SharedRows

app = typer.Typer()


@app.command()
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
    from pastry.vectors.lora.adapter import is_adapter
    from pastry.vectors.lora.extract import extract_adapters

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
        + (f"\n{manifest.birth.advice()}" if manifest.birth and manifest.birth.lossy else "")
        + f"\nnext: pastry vector inject --target MODEL --skill {out}:1.0 --out DIR",
    )


@app.command()
def inject(
    out: Annotated[Path, typer.Option(help="New directory of the injected checkpoint.")],
    target: Annotated[str, typer.Option(help="The model that has read the documents: directory or models:/ URI.")] = "",
    skill: Annotated[
        list[str] | None, typer.Option(help="DIR, DIR:λ or models:/name@alias:λ; may be given several times. λ: 1.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="In place of both: models:/ URI of a registered recipe.")] = "",
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
    """θ_target + Σ λ·v, or a registered recipe, written as an ordinary Hugging Face checkpoint.

    λ is a number, or one for each module group: --skill DIR:attention=1,mlp[0-11]=0.5~1,all=0 (groups: attention, mlp,
    embeddings, norms, all, or /regular expression/; layers in brackets; A~B goes from A to B over the layers; the first
    rule that matches a tensor counts).
    """
    from pastry.registry.recipes import open_registered
    from pastry.registry.resolve import local_path
    from pastry.vectors import inject as injecting

    if bool(recipe) == bool(target) or bool(target) != bool(skill):
        raise PastryError("give --target with one --skill or more, or --recipe models:/name@alias")
    if recipe:
        model, skills = open_registered(recipe)
    else:
        model, skills = local_path(target), [(local_path(path), lam) for path, lam in map(skill_term, skill)]
    options = {"dtype": dtype, "rounding": rounding, "seed": seed, "vocab": vocab, "other_base": other_base}
    with progress_bar("injecting") as progress:
        result = injecting.inject(model, skills, out, **options, dry_run=dry_run, spread=spread(workers), progress=progress)
    if result is None:
        what = f"{recipe} is as it was registered" if recipe else f"{', '.join(skill)} fit {target}"
        say(as_json, {"checked": True}, f"{what}; {out} would be written, nothing was")
        return
    if not as_json:
        show_arrived(result)
    whole = "nothing injected (λ·v is zero)"
    if result.realised_ratio is not None:
        whole = f"realised ratio {result.realised_ratio:.4f}, relative error {result.relative_error:.2g}"
    say(
        as_json,
        result.model_dump(),
        f"{out}: {result.dtype}, rounding {result.rounding}, {whole}; also in {out}/{injecting.REPORT_FILE}"
        + "".join(f"\n{_vocabulary_line(each.name, each.shared_rows)}" for each in result.skills if each.shared_rows),
    )


def _vocabulary_line(name: str, shared: SharedRows) -> str:
    """What --vocab intersect did, in a line."""
    return (
        f"{name}: {shared.shared} rows of the embeddings are of shared tokens ({shared.moved} under another id); "
        f"{shared.untouched} of the target stay as they are, {shared.dropped} of the skill have no place in it"
    )
