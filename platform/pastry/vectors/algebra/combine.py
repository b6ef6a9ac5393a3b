"""Several skill vectors into one, by a method of merging.py."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import chain, combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, get_args

from pastry.errors import PastryError
from pastry.vectors.algebra import merging
from pastry.vectors.algebra.combination import CombineWork, OpenUpdate, Per, Plan, whole_dots
from pastry.vectors.architecture import Architecture
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.derived import write_derived
from pastry.vectors.files import parse_model, refuse_existing
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.geometry.updates import Update
from pastry.vectors.lora.factored import AnySkill, open_skill
from pastry.vectors.rounding import Scratch, block_ranges, check_float_dtype
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import MAX_SHARD_BYTES, Progress, Spread, plan_shards
from pastry.vectors.skill import TENSOR_STEM, SkillFacts, SkillManifest, SkillSource


def combine(
    skills: list[tuple[Path, float]],
    out: Path,
    *,
    name: str,
    method: str,
    orthogonal_to: OpenUpdate | None = None,
    orthogonal_per: Per = "tensor",
    match_norm: bool = False,
    dtype: str = "float32",
    dry_run: bool = False,
    spread: Spread | None = None,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **settings: Any,
) -> SkillManifest | None:
    """Write the skill vector `name`, made of several, to the new directory `out` and return its manifest.

    `skills` are (skill vector directory, weight); weights other than 1 are for the methods that have them (sum, dare).
    `method` and `settings` are those of merging.METHODS and merging.SETTINGS. Afterwards, in this order: `orthogonal_to`
    takes the component along an update, such as the target's SFT update, out of each tensor or out of the whole vector
    (`orthogonal_per`); `match_norm` scales the vector to the mean of the sources' norms.
    Computed in float32, stored in `dtype`. The numbers depend on the inputs alone, not on shards or processes.
    `dry_run` only checks, and returns None.
    Memory: some blocks a thread and source. Reads every input once; ties, `orthogonal_to` and `match_norm` read again.
    Raises PastryError for no skills, an unknown method, a setting that does not fit, incompatible sources or sources of
    different bases, a damaged source (naming the tensor), a zero vector or update where a norm is needed, an existing `out`.
    """
    check_float_dtype(dtype)
    refuse_existing(out)
    facts = parse_model(SkillFacts, {"name": name}, "skill vector")
    settings = _checked_settings(skills, method, settings)
    if orthogonal_per not in get_args(Per):
        raise PastryError(f"--orthogonal-per {orthogonal_per!r} is unknown; wanted {' or '.join(get_args(Per))}")
    if orthogonal_per != "tensor" and not orthogonal_to:
        raise PastryError(f"--orthogonal-per {orthogonal_per} goes with --orthogonal-to; give both or neither")
    sources = [open_skill(path) for path, _ in skills]
    _check_sources(sources)
    if orthogonal_to:
        check_same_architecture(sources[0], orthogonal_to().weights, chat_template=False)
    if dry_run:
        return None
    paths, weights = tuple(source.path.absolute() for source in sources), tuple(weight for _, weight in skills)
    plan = Plan(paths, weights, method, settings, orthogonal_to, orthogonal_per)
    specs = [TensorSpec(info.name, dtype, info.shape) for info in sources[0].tensors.values()]
    shards = plan_shards(TENSOR_STEM, specs, max_shard_bytes)
    recorded = dict(settings)
    if orthogonal_to:
        recorded |= {"orthogonal_to": _update_fingerprint(orthogonal_to()), "orthogonal_per": orthogonal_per}
        if orthogonal_per == "whole":
            v_u, _, u_u = whole_dots(plan, shards, True, spread)
            plan = replace(plan, coefficient=merging.component(v_u, u_u))
    if match_norm:
        norm = math.sqrt(whole_dots(plan, shards, False, spread)[1])
        wanted = math.fsum(source.manifest.norm for source in sources) / len(sources)
        if norm == 0:
            raise PastryError(f"the combined vector is zero and cannot have the norm {wanted:.4g}; leave out --match-norm")
        plan, recorded = replace(plan, factor=wanted / norm), {**recorded, "match_norm": True}
    parts = [
        SkillSource(name=source.manifest.name, fingerprint=source.manifest.fingerprint, weight=weight)
        for source, weight in zip(sources, plan.weights, strict=True)
    ]
    bases = {source.manifest.base for source in sources}
    return write_derived(
        out,
        specs,
        partial(CombineWork, plan),
        {"does": "combine", "method": method, "sources": [part.model_dump() for part in parts], "settings": recorded},
        like=sources[0].path,
        spread=spread,
        progress=progress,
        max_shard_bytes=max_shard_bytes,
        name=facts.name,
        method=method,
        # Known only if every source states it.
        base=bases.pop() if len(bases) == 1 else None,
        sources=parts,
        settings=recorded,
        stored_dtype=dtype,
        source_dtypes=sorted({info.dtype for source in sources for info in source.tensors.values()}),
        architecture=_joint_architecture(sources),
    )


def _checked_settings(skills: list[tuple[Path, float]], method: str, given: dict[str, Any]) -> dict[str, Any]:
    weighted = "weights" in merging.parameters(method)
    if not skills:
        raise PastryError("no skill vector to combine; give at least one --skill")
    for path, weight in skills:
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            found = getattr(weight, "text", weight)  # the rules of a ModuleLambdas, as they were written
            raise PastryError(f"the weight of {path} is {found!r}, wanted a finite number such as 0.5")
        if weight != 1 and not weighted:
            raise PastryError(
                f"the weight of {path} is {weight}, but {method} takes all skills alike; leave it out or use --method sum"
            )
    return merging.complete_settings(method, len(skills), given)


def _check_sources(sources: list[AnySkill]) -> None:
    # All pairs: a fact that the first source does not state may still differ between two others.
    for a, b in combinations_with_replacement(sources, 2):
        check_same_architecture(a, b)
    for a, b in combinations(sources, 2):
        if a.manifest.base and b.manifest.base and a.manifest.base != b.manifest.base:
            raise PastryError(
                f"different bases: {a.path} has {a.manifest.base}, {b.path} has {b.manifest.base}; "
                "combine vectors of models that come from one base"
            )


def _joint_architecture(sources: list[AnySkill]) -> Architecture:
    """All facts that any source states."""
    stated = [source.architecture.model_dump(exclude_none=True) for source in reversed(sources)]
    return Architecture(**dict(chain.from_iterable(facts.items() for facts in stated)))


def _update_fingerprint(update: Update) -> str:
    """The fingerprint of the update's float32 numbers: what it would have as a skill vector in float32."""
    if isinstance(update.weights, AnySkill):
        update.weights.verify()
    digests, scratch, zero = {}, Scratch(), True
    for name, info in update.weights.tensors.items():
        blocks = []
        for block in block_ranges(info.elements):
            u = update.block(name, *block, scratch)
            blocks.append(block_digest(u))
            zero = zero and not u.any()
        digests[name] = tensor_digest(TensorSpec(name, "float32", info.shape), blocks)
    if zero:
        raise PastryError(f"the update that ends with {update.weights.path} is zero; there is nothing to be orthogonal to")
    return fingerprint(digests)
