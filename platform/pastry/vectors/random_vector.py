"""The control for a skill vector: a random direction with the same norm in every tensor."""

import math
from functools import partial
from pathlib import Path

import numpy as np

from pastry.vectors.derived import DerivedWork, write_derived
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.rounding import Scratch, block_ranges, derive_key
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.skill import SkillManifest


class RandomWork(DerivedWork):
    """Gaussian numbers, scaled in each tensor to the norm that the skill has there."""

    def __init__(self, skill: Path, seed: int):
        super().__init__()
        self.norms = {name: tensor.norm for name, tensor in open_skill(skill).manifest.tensors.items()}
        self.seed = seed

    def prepare(self, spec: TensorSpec) -> float:
        drawn = (self._draw(spec.name, *block) for block in block_ranges(spec.elements))
        length = math.sqrt(math.fsum(float(np.dot(block, block)) for block in drawn))
        return self.norms[spec.name] / length if length else 0.0

    def values(self, spec: TensorSpec, start: int, stop: int, prepared: float, scratch: Scratch) -> tuple[np.ndarray, None]:
        return self._draw(spec.name, start, stop) * np.float32(prepared), None

    def _draw(self, name: str, start: int, stop: int) -> np.ndarray:
        # A stream of its own for each block, so that blocks can be drawn in any order.
        generator = np.random.Generator(np.random.Philox(key=derive_key(self.seed, name), counter=[0, 0, 0, start]))
        return generator.standard_normal(stop - start, dtype=np.float32)


def random_like(skill: Path, out: Path, seed: int) -> SkillManifest:
    """Write a Gaussian vector with the names, shapes, dtypes and per-tensor norms of `skill` to the directory `out`.

    Each tensor's numbers depend on `seed` and its name alone.
    Raises PastryError if `skill` cannot be opened or `out` exists.
    """
    like = open_skill(skill)
    return write_derived(
        out,
        list(like.tensors.values()),
        partial(RandomWork, skill, seed),
        {"does": "random", "seed": seed, "control_of": like.manifest.fingerprint},
        like=like.path,
        name=f"{like.manifest.name}-random-{seed}",
        method="random",
        seed=seed,
        control_of=like.manifest.fingerprint,
        stored_dtype=like.manifest.stored_dtype,
        source_dtypes=[],
        architecture=like.architecture,
    )
