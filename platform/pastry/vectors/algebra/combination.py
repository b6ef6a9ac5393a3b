"""The numbers of a combined skill vector, block by block, and what must be known of the whole before."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pastry.vectors import kernels
from pastry.vectors.algebra import merging
from pastry.vectors.derived import DerivedWork
from pastry.vectors.fingerprint import block_digest
from pastry.vectors.geometry.updates import Update
from pastry.vectors.lora.factored import AnySkill, open_skill
from pastry.vectors.rounding import Scratch, block_ranges, derive_key
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import Shard, Spread

Per = Literal["tensor", "whole"]
OpenUpdate = Callable[[], Update]
"""Opens an update, in every process that takes part, so it must be picklable: partial(CheckpointUpdate, end, start)."""


@dataclass(frozen=True)
class Plan:
    """All that a combined vector's numbers follow from. Any process can open it."""

    skills: tuple[Path, ...]
    weights: tuple[float, ...]
    method: str
    settings: dict[str, Any]
    update: OpenUpdate | None
    """What the result is made orthogonal to."""
    per: Per
    coefficient: float = 0.0
    """⟨v,u⟩/⟨u,u⟩ of the whole vector; not used where `per` is "tensor"."""
    factor: float = 1.0


class Whole(NamedTuple):
    """What is known of a whole tensor before its blocks are computed."""

    parameters: dict[str, Any]
    """Of the method; but for `first`, which differs from block to block."""
    coefficient: float
    factor: float


class CombineWork(DerivedWork):
    """(m − c·u)·factor, where m is what the method makes of the skills' blocks."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.skills = [open_skill(path) for path in plan.skills]
        self.update = plan.update() if plan.update else None
        self.needs = merging.parameters(plan.method)

    def prepare(self, spec: TensorSpec) -> Whole:
        plan, scratch = self.plan, Scratch()
        known = {**plan.settings, "weights": plan.weights}
        if "thresholds" in self.needs:
            # The threads that compute blocks wait for this, so the sources may as well be read side by side.
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                known["thresholds"] = list(pool.map(partial(_threshold, spec, plan.settings["density"]), self.skills))
        if "keys" in self.needs:
            seed, count = plan.settings["seed"], len(self.skills)
            known["keys"] = [derive_key(seed, f"{spec.name}, source {i}") for i in range(count)]
        whole = Whole({name: known[name] for name in self.needs & known.keys()}, plan.coefficient, plan.factor)
        if self.update and plan.per == "tensor":
            merged = whole._replace(coefficient=0.0, factor=1.0)
            dots = [self._dots(spec, *block, merged, scratch, True) for block in block_ranges(spec.elements)]
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
        return merging.scaled(merged, prepared.factor), digests

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


def whole_dots(plan: Plan, shards: list[Shard], with_update: bool, spread: Spread | None) -> list[float]:
    """The sums of CombineWork.dots over the whole vector; exact sums of the blocks', so their order does not matter."""
    blocks = list(chain.from_iterable((spread or map)(partial(_shard_dots, plan, with_update), shards)))
    return [math.fsum(block[i] for block in blocks) for i in range(3)]


def _shard_dots(plan: Plan, with_update: bool, shard: Shard) -> list[tuple[float, float, float]]:
    work, scratch = CombineWork(plan), Scratch()

    def dots(spec: TensorSpec, block: tuple[int, int]) -> tuple[float, float, float]:
        return work.dots(spec, *block, scratch, with_update)

    blocks = [(spec, block) for spec in shard.tensors for block in block_ranges(spec.elements)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(dots, *zip(*blocks, strict=True))) if blocks else []


def _threshold(spec: TensorSpec, density: float, skill: AnySkill) -> np.float32:
    scratch = Scratch()

    def blocks() -> Iterator[np.ndarray]:
        return (skill.widened_block(spec.name, *block, scratch)[0] for block in block_ranges(spec.elements))

    return merging.magnitude_threshold(blocks, spec.elements, density)
