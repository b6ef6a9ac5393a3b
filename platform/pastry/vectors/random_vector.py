"""The control for a skill vector: a random direction with the same norm in every tensor."""

import math
from pathlib import Path

import torch

from pastry.vectors.files import atomic_directory, write_json
from pastry.vectors.fingerprint import tensor_digest
from pastry.vectors.rounding import derive_seed, float_dtype, round_nearest
from pastry.vectors.shards import write_shards
from pastry.vectors.skill import MANIFEST_FILE, TENSOR_STEM, Skill, SkillManifest, SkillTensor, summarise
from pastry.vectors.sums import dot


def random_like(skill: Path, out: Path, seed: int) -> SkillManifest:
    """Write a Gaussian vector with the names, shapes, dtypes and per-tensor norms of `skill` to the directory `out`.

    Each tensor's numbers depend on `seed` and its name alone.
    Raises PastryError if `skill` cannot be opened or `out` exists.
    """
    model = Skill(skill)
    tensors: dict[str, SkillTensor] = {}

    def draw(name: str) -> torch.Tensor:
        wanted = model.manifest.tensors[name]
        generator = torch.Generator().manual_seed(derive_seed(seed, name))
        gaussian = torch.randn(wanted.shape, generator=generator)
        length = math.sqrt(dot(gaussian, gaussian))
        scale = wanted.norm / length if length else 0.0
        v = round_nearest(gaussian * scale, float_dtype(wanted.dtype), f"the random vector in tensor {name}")
        tensors[name] = SkillTensor(digest=tensor_digest(v), shape=wanted.shape, dtype=wanted.dtype, norm=math.sqrt(dot(v, v)))
        return v

    with atomic_directory(out) as tmp:
        sizes = {name: info.elements * float_dtype(info.dtype).itemsize for name, info in model.tensors.items()}
        write_shards(tmp, TENSOR_STEM, sizes, draw)
        manifest = SkillManifest(
            **summarise(tensors),
            name=f"{model.manifest.name}-random-{seed}",
            method="random",
            seed=seed,
            control_of=model.manifest.fingerprint,
            stored_dtype=model.manifest.stored_dtype,
            source_dtypes=[],
            architecture=model.architecture,
        )
        write_json(tmp / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
