"""Several skill vectors into one, block by block, by a method of merging.py."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, combinations, combinations_with_replacement
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from pastry.errors import PastryError
from pastry.vectors import kernels, merging
from pastry.vectors.architecture import Architecture
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.derived import DerivedWork, write_derived
from pastry.vectors.files import parse_model, refuse_existing
from pastry.vectors.fingerprint import block_digest, checkpoint_fingerprint
from pastry.vectors.geometry import CheckpointUpdate
from pastry.vectors.rounding import Scratch, block_ranges, check_float_dtype, derive_key
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import MAX_SHARD_BYTES, Progress, Shard, Spread, plan_shards
from pastry.vectors.skill import TENSOR_STEM, Skill, SkillFacts, SkillManifest, SkillSource

Per = Literal["tensor", "whole"]


@dataclass(frozen=True)
class Plan:
    """All that a combined vector's numbers follow from. Any process can open it."""

    skills: tuple[Path, ...]
    weights: tuple[float, ...]
    method: str
    settings: dict[str, Any]
    update: tuple[Path, Path] | None
    """End and start of the update that the result is made orthogonal to."""
    per: Per
    coefficient: float = 0.0
    """⟨v,u⟩/⟨u,u⟩ of the whole vector; not used where `per` is "tensor"."""
    factor: float = 1.0


class Whole(NamedTuple):
    """What is known of a whole tensor before its blocks are computed."""

    parameters: dict[str, Any]
    """Of the method; but for `first`, which differs from block to block."""
    coefficient: float


class CombineWork(DerivedWork):
    """(m − c·u)·factor, where m is what the method makes of the skills' blocks."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.skills = [Skill(path) for path in plan.skills]
        self.update = CheckpointUpdate(*plan.update) if plan.update else None
        self.needs = merging.parameters(plan.method)

    def prepare(self, spec: TensorSpec) -> Whole:
        plan, scratch = self.plan, Scratch()
        known = {**plan.settings, "weights": plan.weights}
        if "thresholds" in self.needs:
            known["thresholds"] = [
                merging.magnitude_threshold(
                    partial(_tensor_values, skill, spec, scratch), spec.elements, plan.settings["density"]
                )
                for skill in self.skills
            ]
        if "keys" in self.needs:
            seed, count = plan.settings["seed"], len(self.skills)
            known["keys"] = [derive_key(seed, f"{spec.name}, source {i}") for i in range(count)]
        whole = Whole({name: known[name] for name in self.needs & known.keys()}, plan.coefficient)
        if self.update and plan.per == "tensor":
            unchanged = whole._replace(coefficient=0.0)
            dots = [self._dots(spec, *block, unchanged, scratch, True) for block in block_ranges(spec.elements)]
            v_u, _, u_u = (math.fsum(block[i] for block in dots) for i in range(3))
            whole = whole._replace(coefficient=merging.component(v_u, u_u))
        return whole

    def values(self, spec: TensorSpec, start: int, stop: int, prepared: Whole, scratch: Scratch) -> tuple[np.ndarray, Any]:
        read = [skill.widened_block(spec.name, start, stop, scratch) for skill in self.skills]
        digests = [block_digest(stored) for _, stored in read]
        parameters = {**prepared.parameters, "first": start} if "first" in self.needs else prepared.parameters
        merged = merging.METHODS[self.plan.method]([v for v, _ in read], **parameters)
        if prepared.coefficient:
            u = self.update.block(spec.name, start, stop, scratch)
            merged = merging.without_component(merged, u, prepared.coefficient)
        return merging.scaled(merged, self.plan.factor), digests

    def check(self, spec: TensorSpec, facts: list[Any]) -> None:
        for skill, digests in zip(self.skills, zip(*facts, strict=True), strict=True) if facts else ():
            skill.check_digest(spec.name, digests)

    def dots(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch, with_update: bool) -> tuple[float, float, float]:
        """⟨v,u⟩, ⟨v,v⟩ and ⟨u,u⟩ of a block of the result v and the update u; of v and v where not `with_update`."""
        return self._dots(spec, start, stop, self._prepare_once(spec), scratch, with_update)

    def _dots(
        self, spec: TensorSpec, start: int, stop: int, prepared: Whole, scratch: Scratch, with_update: bool
    ) -> tuple[float, float, float]:
        v, _ = self.values(spec, start, stop, prepared, scratch)
        return kernels.dots(v, self.update.block(spec.name, start, stop, scratch) if with_update else v)


def combine(
    skills: list[tuple[Path, float]],
    out: Path,
    *,
    name: str,
    method: str,
    orthogonal_to: tuple[Path, Path] | None = None,
    orthogonal_per: Per = "tensor",
    match_norm: bool = False,
    dtype: str = "float32",
    spread: Spread | None = None,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **settings: Any,
) -> SkillManifest:
    """Write the skill vector `name`, made of several, to the new directory `out` and return its manifest.

    `skills` are (skill vector directory, weight); weights other than 1 are for the methods that have them (sum, dare).
    `method` and `settings` are those of merging.METHODS and merging.SETTINGS. Afterwards, in this order: `orthogonal_to`
    (end, start), two checkpoints such as the target's SFT and its base, takes the component along u = end − start out
    of each tensor, or of the whole vector (`orthogonal_per`); `match_norm` scales the vector to the mean of the sources'
    norms. Computed in float32, stored in `dtype`. The numbers depend on the inputs alone, not on shards or processes.
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
    sources = [Skill(path) for path, _ in skills]
    _check_sources(sources)
    plan = Plan(tuple(s.path for s in sources), tuple(w for _, w in skills), method, settings, orthogonal_to, orthogonal_per)
    specs = [TensorSpec(info.name, dtype, info.shape) for info in sources[0].tensors.values()]
    shards = plan_shards(TENSOR_STEM, specs, max_shard_bytes)
    recorded = dict(settings)
    if orthogonal_to:
        check_same_architecture(sources[0], CheckpointUpdate(*orthogonal_to).weights, chat_template=False)
        end, start = map(checkpoint_fingerprint, orthogonal_to)
        recorded |= {"orthogonal_to_end": end, "orthogonal_to_start": start, "orthogonal_per": orthogonal_per}
        if end == start:
            raise PastryError(f"{orthogonal_to[0]} − {orthogonal_to[1]} is zero: there is nothing to be orthogonal to")
        if orthogonal_per == "whole":
            v_u, _, u_u = _all_dots(plan, shards, True, spread)
            plan = replace(plan, coefficient=merging.component(v_u, u_u))
    if match_norm:
        norm = math.sqrt(_all_dots(plan, shards, False, spread)[1])
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
            raise PastryError(f"the weight of {path} is {weight!r}, wanted a finite number such as 0.5")
        if weight != 1 and not weighted:
            raise PastryError(
                f"the weight of {path} is {weight}, but {method} takes all skills alike; leave it out or use --method sum"
            )
    return merging.complete_settings(method, len(skills), given)


def _check_sources(sources: list[Skill]) -> None:
    # All pairs: a fact that the first source does not state may still differ between two others.
    for a, b in combinations_with_replacement(sources, 2):
        check_same_architecture(a, b)
    for a, b in combinations(sources, 2):
        if a.manifest.base and b.manifest.base and a.manifest.base != b.manifest.base:
            raise PastryError(
                f"different bases: {a.path} has {a.manifest.base}, {b.path} has {b.manifest.base}; "
                "combine vectors of models that come from one base"
            )


def _joint_architecture(sources: list[Skill]) -> Architecture:
    """All facts that any source states."""
    stated = [source.architecture.model_dump(exclude_none=True) for source in reversed(sources)]
    return Architecture(**dict(chain.from_iterable(facts.items() for facts in stated)))


def _tensor_values(skill: Skill, spec: TensorSpec, scratch: Scratch) -> Iterator[np.ndarray]:
    return (skill.widened_block(spec.name, *block, scratch)[0] for block in block_ranges(spec.elements))


def _all_dots(plan: Plan, shards: list[Shard], with_update: bool, spread: Spread | None) -> list[float]:
    """The sums of CombineWork.dots over the whole vector; exact sums of the blocks', so their order does not matter."""
    blocks = list(chain.from_iterable((spread or map)(partial(_shard_dots, plan, with_update), shards)))
    return [math.fsum(block[i] for block in blocks) for i in range(3)]


def _shard_dots(plan: Plan, with_update: bool, shard: Shard) -> list[tuple[float, float, float]]:
    work, local = CombineWork(plan), threading.local()

    def dots(spec: TensorSpec, start: int, stop: int) -> tuple[float, float, float]:
        if not hasattr(local, "scratch"):
            local.scratch = Scratch()
        return work.dots(spec, start, stop, local.scratch, with_update)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(dots, spec, *block) for spec in shard.tensors for block in block_ranges(spec.elements)]
        return [future.result() for future in futures]
