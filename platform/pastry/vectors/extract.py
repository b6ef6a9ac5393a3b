"""Cut a skill out of a model: v = end − start, in float32, block by block.

PAPERS: PaST, Parametric Skill Transfer, arXiv 2601.11258.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pastry.errors import PastryError
from pastry.vectors import kernels
from pastry.vectors.birth import birth, look, sums
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.files import parse_model, refuse_existing, write_json
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.rounding import FLOAT_DTYPES, Scratch, check_float_dtype, overflow_advice, round_to, widen
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import MAX_SHARD_BYTES, Progress, Spread, plan_shards, sharded_output
from pastry.vectors.skill import MANIFEST_FILE, TENSOR_STEM, SkillFacts, SkillManifest, SkillTensor, copy_tokenizer, summarise


class ExtractWork:
    """end − start of each block, with what the manifest says about it."""

    def __init__(self, end: Path, start: Path, base: Path | None = None):
        self.inputs = {"end": Checkpoint(end), "start": Checkpoint(start)}
        if base is not None:
            self.inputs["base"] = Checkpoint(base)

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, dict[str, Any]]:
        n = stop - start
        read = {role: side.widened_block(spec.name, start, stop, scratch) for role, side in self.inputs.items()}
        digests = {role: block_digest(stored) for role, (_, stored) in read.items()}
        (theta_end, end_stored), (theta_start, _) = read["end"], read["start"]

        difference = np.subtract(theta_end, theta_start, out=scratch("difference", np.float32, n))
        stored = difference
        if spec.dtype != "float32":
            stored = round_to(difference, scratch("stored", FLOAT_DTYPES[spec.dtype], n), start)
        where = f"the difference in tensor {spec.name}"
        v = widen(stored, scratch("v", np.float32, n), where, spec.shape, start, overflow_advice(spec.dtype))
        digests["v"] = block_digest(stored)

        square, zeros = kernels.square_and_zeros(v)
        not_restored = _not_restored(theta_start, v, end_stored)
        facts = {"digests": digests, "square": square, "zeros": zeros, "not_restored": not_restored}
        facts["look"] = look(theta_start, theta_end, start)
        if "base" in read:
            sft = np.subtract(theta_start, read["base"][0], out=scratch("sft", np.float32, n))
            facts["sft"] = kernels.dots(v, sft)
        return stored, facts

    def record(self, spec: TensorSpec, facts: list[dict[str, Any]]) -> dict[str, Any]:
        v_v = math.fsum(block["square"] for block in facts)
        has_base = "base" in self.inputs
        v_sft, _, sft_sft = (math.fsum(block["sft"][i] for block in facts) if has_base else 0.0 for i in range(3))
        tensor = SkillTensor(
            digest=tensor_digest(spec, (block["digests"]["v"] for block in facts)),
            shape=spec.shape,
            dtype=spec.dtype,
            norm=math.sqrt(v_v),
            zeros=sum(block["zeros"] for block in facts),
            cosine_to_sft=kernels.cosine_from_dots(v_sft, v_v, sft_sft),
            not_restored=sum(block["not_restored"] for block in facts),
        )
        digests = {
            role: tensor_digest(side.tensors[spec.name], (block["digests"][role] for block in facts))
            for role, side in self.inputs.items()
        }
        dots = {"v_sft": v_sft, "v_v": v_v, "sft_sft": sft_sft}
        born = sums((block["look"] for block in facts), spec.elements, tensor.norm)
        return {"tensor": tensor.model_dump(mode="json"), "digests": digests, "dots": dots, "birth": born}


def _not_restored(theta_start: np.ndarray, v: np.ndarray, end_stored: np.ndarray) -> int:
    """Elements where start + 1.0·v, rounded to nearest in the end's dtype, is not the end bit for bit."""
    if end_stored.dtype == np.uint16:
        return kernels.not_restored_bfloat16(theta_start, v, end_stored)
    if end_stored.dtype == np.float32:
        return kernels.not_restored_float32(theta_start, v, end_stored.view(np.uint32))
    again = round_to(theta_start - (np.float32(0) - v), np.empty_like(end_stored), 0)
    return int(np.count_nonzero(again.view(np.uint16) != end_stored.view(np.uint16)))


def extract(
    end: Path,
    start: Path,
    out: Path,
    *,
    name: str,
    base: Path | None = None,
    dtype: str = "float32",
    dry_run: bool = False,
    spread: Spread | None = None,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **facts: object,
) -> SkillManifest | None:
    """Write the skill vector `name` = end − start to the new directory `out` and return its manifest.

    `end` and `start` are checkpoint directories (float32, bfloat16 or float16; the difference is taken in float32),
    `dtype` is what the vector is stored in. With `base`, the manifest holds the cosines to the SFT update start − base.
    `facts` are the fields of SkillFacts. `dry_run` only checks, and returns None.
    Memory: some blocks a thread, whatever the model's size.
    Raises PastryError for incompatible or unreadable checkpoints, NaN or Inf, an existing `out`, an unknown fact.
    """
    check_float_dtype(dtype)
    known = parse_model(SkillFacts, {"name": name, **facts}, "skill vector")
    end_weights, start_weights = Checkpoint(end), Checkpoint(start)
    check_same_architecture(end_weights, start_weights)
    inputs = [end_weights, start_weights]
    if base is not None:
        inputs.append(Checkpoint(base))
        # SFT often gives a base model its first chat template; the base's numbers are the only thing used here.
        check_same_architecture(start_weights, inputs[-1], chat_template=False, base=False)

    shards = plan_shards(
        TENSOR_STEM, (TensorSpec(t.name, dtype, t.shape) for t in end_weights.tensors.values()), max_shard_bytes
    )
    identity = {
        "does": "extract",
        "inputs": [[str(side.path.absolute()), side.stamp()] for side in inputs],
        "shards": [[shard.file, dtype, len(shard.tensors)] for shard in shards],
    }
    refuse_existing(out)
    if dry_run:
        return None
    open_work = partial(ExtractWork, *(side.path.absolute() for side in inputs))
    with sharded_output(out, shards, open_work, identity, spread=spread, progress=progress) as (directory, records):
        parents = {
            role: fingerprint({tensor: record["digests"][role] for tensor, record in records.items()})
            for role in ("end", "start", "base")[: len(inputs)]
        }
        recorded = start_weights.architecture.base
        if recorded and parents.setdefault("base", recorded) != recorded:
            raise PastryError(f"{base}: its fingerprint is {parents['base']}, but {start} was trained from {recorded}")
        dots = [math.fsum(record["dots"][key] for record in records.values()) for key in ("v_sft", "v_v", "sft_sft")]
        sources = [*end_weights.tensors.values(), *start_weights.tensors.values()]
        manifest = SkillManifest(
            **known.model_dump(),
            **parents,
            **summarise({tensor: SkillTensor(**record["tensor"]) for tensor, record in records.items()}),
            method="difference",
            stored_dtype=dtype,
            source_dtypes=sorted({info.dtype for info in sources}),
            architecture=end_weights.architecture.model_copy(update={"base": parents.get("base")}),
            cosine_to_sft=kernels.cosine_from_dots(*dots),
            birth=birth(record["birth"] for record in records.values()),
        )
        copy_tokenizer(end_weights.path, directory)
        write_json(directory / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest
