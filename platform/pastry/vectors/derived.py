"""Skill vectors that are computed from other ones: what such computations share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pastry.vectors import kernels
from pastry.vectors.files import write_json
from pastry.vectors.fingerprint import block_digest, tensor_digest
from pastry.vectors.rounding import FLOAT_DTYPES, Scratch, overflow_advice, round_to, widen
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import MAX_SHARD_BYTES, Open, Progress, Spread, plan_shards, sharded_output
from pastry.vectors.skill import MANIFEST_FILE, TENSOR_STEM, SkillManifest, SkillTensor, copy_tokenizer, summarise


class DerivedWork:
    """A vector given by the float32 values of its blocks. Subclasses say `values`, and `prepare` if a tensor needs it."""

    def __init__(self) -> None:
        self._prepared: dict[TensorSpec, Future] = {}
        self._lock = Lock()

    def prepare(self, spec: TensorSpec) -> Any:
        """What `values` needs to know of the whole tensor; computed once, before its first block."""

    def values(self, spec: TensorSpec, start: int, stop: int, prepared: Any, scratch: Scratch) -> tuple[np.ndarray, Any]:
        """Elements `start` to `stop` in float32, and what `check` needs to know of them."""
        raise NotImplementedError

    def check(self, spec: TensorSpec, facts: list[Any]) -> None:
        """Refuse the tensor with a PastryError if its blocks' facts, in order, say that an input is damaged."""

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, dict[str, Any]]:
        values, facts = self.values(spec, start, stop, self._prepare_once(spec), scratch)
        stored = round_to(values, scratch("stored", FLOAT_DTYPES[spec.dtype], stop - start), start)
        where = f"the derived vector in tensor {spec.name}"
        v = widen(stored, scratch("v", np.float32, stop - start), where, spec.shape, start, overflow_advice(spec.dtype))
        square, zeros = kernels.square_and_zeros(v)
        return stored, {"digest": block_digest(stored), "facts": facts, "square": square, "zeros": zeros}

    def record(self, spec: TensorSpec, facts: list[dict[str, Any]]) -> dict[str, Any]:
        self.check(spec, [block["facts"] for block in facts])
        tensor = SkillTensor(
            digest=tensor_digest(spec, (block["digest"] for block in facts)),
            shape=spec.shape,
            dtype=spec.dtype,
            norm=math.sqrt(math.fsum(block["square"] for block in facts)),
            zeros=sum(block["zeros"] for block in facts),
        )
        return tensor.model_dump(mode="json")

    def _prepare_once(self, spec: TensorSpec) -> Any:
        with self._lock:
            mine = spec not in self._prepared
            future = self._prepared.setdefault(spec, Future())
        if mine:
            try:
                future.set_result(self.prepare(spec))
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def write_derived(
    out: Path,
    specs: Iterable[TensorSpec],
    open_work: Open,
    identity: dict[str, Any],
    *,
    like: Path,
    spread: Spread | None = None,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    **manifest: Any,
) -> SkillManifest:
    """Write the vector that `open_work` (a DerivedWork) gives to the new directory `out`; `manifest` are its other fields.

    `identity` tells this vector from any other one that could have been meant for `out`. It belongs to the models that the
    vector in `like` belongs to, whose tokenizer.json it gets.
    """
    shards = plan_shards(TENSOR_STEM, specs, max_shard_bytes)
    whole = {**identity, "shards": [[shard.file, [[s.name, s.dtype] for s in shard.tensors]] for shard in shards]}
    with sharded_output(out, shards, open_work, whole, spread=spread, progress=progress) as (directory, records):
        tensors = {name: SkillTensor(**record) for name, record in records.items()}
        written = SkillManifest(**manifest, **summarise(tensors))
        copy_tokenizer(like, directory)
        write_json(directory / MANIFEST_FILE, written.model_dump(mode="json"))
    return written
