"""Cut a skill out of a model: v = end − start, in float32, tensor by tensor.

PAPERS: PaST, Parametric Skill Transfer, arXiv 2601.11258.
"""

import math
from pathlib import Path

import torch

from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.files import atomic_directory, parse_model, write_json
from pastry.vectors.fingerprint import fingerprint, tensor_digest
from pastry.vectors.rounding import add, float_dtype, round_nearest, to_float32
from pastry.vectors.shards import write_shards
from pastry.vectors.skill import MANIFEST_FILE, TENSOR_STEM, SkillFacts, SkillManifest, SkillTensor, summarise
from pastry.vectors.sums import cosine_from_dots, dot


def extract(
    end: Path, start: Path, out: Path, *, name: str, base: Path | None = None, dtype: str = "float32", **facts: object
) -> SkillManifest:
    """Write the skill vector `name` = end − start to the new directory `out` and return its manifest.

    `end` and `start` are checkpoint directories (float32, bfloat16 or float16; the difference is taken in float32),
    `dtype` is what the vector is stored in. With `base`, the manifest holds the cosines to the SFT update start − base.
    `facts` are the fields of SkillFacts. Memory: one shard and a few tensors.
    Raises PastryError for incompatible or unreadable checkpoints, NaN or Inf, an existing `out`, an unknown fact.
    """
    stored_dtype = float_dtype(dtype)
    known = parse_model(SkillFacts, {"name": name, **facts}, "skill vector")
    end_weights, start_weights = Checkpoint(end), Checkpoint(start)
    base_weights = Checkpoint(base) if base is not None else None
    check_same_architecture(end_weights, start_weights)
    if base_weights is not None:
        # SFT often gives a base model its first chat template; the base's numbers are the only thing used here.
        check_same_architecture(start_weights, base_weights, chat_template=False)

    digests: dict[str, dict[str, str]] = {"end": {}, "start": {}, "base": {}}
    tensors: dict[str, SkillTensor] = {}
    totals = {"v·sft": 0.0, "v·v": 0.0, "sft·sft": 0.0}

    def read(role: str, weights: Checkpoint, tensor: str) -> torch.Tensor:
        raw = weights.read(tensor)
        digests[role][tensor] = tensor_digest(raw)
        return to_float32(raw, f"{weights.path}: tensor {tensor}")

    def subtract(tensor: str) -> torch.Tensor:
        theta_end, theta_start = read("end", end_weights, tensor), read("start", start_weights, tensor)
        v = round_nearest(theta_end - theta_start, stored_dtype, f"the difference in tensor {tensor}")
        restored = add(theta_start, v.float()).to(float_dtype(end_weights.tensors[tensor].dtype))
        vv, cosine = dot(v, v), None
        if base_weights is not None:
            sft = theta_start - read("base", base_weights, tensor)
            dots = {"v·sft": dot(v, sft), "v·v": vv, "sft·sft": dot(sft, sft)}
            cosine = cosine_from_dots(*dots.values())
            for key, value in dots.items():
                totals[key] += value
        tensors[tensor] = SkillTensor(
            digest=tensor_digest(v),
            shape=tuple(v.shape),
            dtype=dtype,
            norm=math.sqrt(vv),
            cosine_to_sft=cosine,
            # Compared as bits, so that 0.0 and −0.0 differ.
            not_restored=int((restored.float().view(torch.int32) != theta_end.view(torch.int32)).sum()),
        )
        return v

    with atomic_directory(out) as tmp:
        sizes = {tensor: info.elements * stored_dtype.itemsize for tensor, info in end_weights.tensors.items()}
        write_shards(tmp, TENSOR_STEM, sizes, subtract)
        sources = [*end_weights.tensors.values(), *start_weights.tensors.values()]
        manifest = SkillManifest(
            **known.model_dump(),
            **summarise(tensors),
            method="difference",
            end=fingerprint(digests["end"]),
            start=fingerprint(digests["start"]),
            base=fingerprint(digests["base"]) if base_weights is not None else None,
            stored_dtype=dtype,
            source_dtypes=sorted({info.dtype for info in sources}),
            architecture=end_weights.architecture,
            cosine_to_sft=cosine_from_dots(*totals.values()),
        )
        write_json(tmp / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
