"""Rewrite a skill vector in the encoding "sparse-zstd" or back, bit for bit: same tensors, same fingerprint, fewer bytes."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from pastry.errors import PastryError
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.compression.sparse_format import SPARSE_ENCODING, block_table, encode_block, largest_blob
from pastry.vectors.files import fsync, read_json, resumable_directory, write_json
from pastry.vectors.fingerprint import block_digest
from pastry.vectors.rounding import FLOAT_DTYPES, Scratch, block_ranges
from pastry.vectors.safetensors_format import TensorSpec, encode_header
from pastry.vectors.shards import MAX_SHARD_BYTES, Progress, Shard, plan_shards, sharded_output, write_index
from pastry.vectors.skill import MANIFEST_FILE, TENSOR_STEM, Skill


class Sizes(BaseModel):
    """Bytes of a vector's tensors in either encoding."""

    model_config = ConfigDict(extra="forbid")

    dense_bytes: int
    compressed_bytes: int
    ratio: float | None
    """dense / compressed; None for a vector without elements."""


def compress(skill: Path, out: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES) -> Sizes:
    """Write `skill` compressed to the new directory `out`. `max_shard_bytes` counts the dense tensors.

    A killed run goes on at the first shard that is missing. Memory: the compressed bytes of one tensor, and some blocks.
    Raises PastryError if `skill` is damaged or compressed already, or if `out` exists.
    """
    source = _open(skill, "dense")
    shards = plan_shards(TENSOR_STEM, source.tensors.values(), max_shard_bytes)
    stored: dict[str, int] = {}
    with resumable_directory(out, _identity("compress", source, shards)) as (data, notes):
        for shard in shards:
            note = notes / f"{shard.file}.json"
            if not note.exists():
                sizes = _write_shard(source, data / shard.file, shard)
                fsync(data / shard.file)
                write_json(note, sizes)
            stored |= read_json(note)
        write_index(data, shards, sum(stored.values()))
        _write_manifest(source, data, SPARSE_ENCODING)
    return _sizes(source, sum(stored.values()))


def decompress(skill: Path, out: Path, *, progress: Progress | None = None, max_shard_bytes: int = MAX_SHARD_BYTES) -> Sizes:
    """Write the compressed `skill` to the new directory `out` as `extract` would have.

    Raises PastryError if `skill` is damaged or not compressed, or if `out` exists.
    """
    source = _open(skill, SPARSE_ENCODING)
    shards = plan_shards(TENSOR_STEM, source.tensors.values(), max_shard_bytes)
    identity = _identity("decompress", source, shards)
    with sharded_output(out, shards, partial(DecompressWork, skill), identity, progress=progress) as (directory, _):
        _write_manifest(source, directory, "dense")
    return _sizes(source, sum(blob.nbytes for blob in TensorDirectory(skill).tensors.values()))


class DecompressWork:
    """The blocks of a skill vector as they are, checked against the manifest."""

    def __init__(self, skill: Path):
        self.skill = Skill(skill)

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, bytes]:
        stored = self.skill.read_block(spec.name, start, stop, scratch("stored", FLOAT_DTYPES[spec.dtype], stop - start))
        return stored, block_digest(stored)

    def record(self, spec: TensorSpec, facts: list[bytes]) -> dict[str, Any]:
        self.skill.check_digest(spec.name, facts)
        return {}


def _open(skill: Path, encoding: str) -> Skill:
    source = Skill(skill)
    if source.manifest.encoding != encoding:
        raise PastryError(f"{source.path} has the encoding {source.manifest.encoding} already; use it as it is")
    return source


def _identity(does: str, source: Skill, shards: list[Shard]) -> dict[str, Any]:
    return {
        "does": does,
        "skill": [source.manifest.fingerprint, str(source.path.absolute()), source.stamp()],
        "shards": [[shard.file, len(shard.tensors)] for shard in shards],
    }


def _write_shard(source: Skill, path: Path, shard: Shard) -> dict[str, int]:
    """Write one file; each tensor's size in it."""
    # The header comes first but is known last: room is left for one whose numbers are larger, and spaces may fill it.
    room = len(encode_header(TensorSpec(spec.name, "uint8", (largest_blob(spec),)) for spec in shard.tensors)[0])
    sizes: dict[str, int] = {}
    try:
        with open(path, "wb") as stream, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            stream.seek(room)
            for spec in shard.tensors:
                encoded = list(pool.map(partial(_encode, source, spec), block_ranges(spec.elements)))
                source.check_digest(spec.name, (digest for _, digest in encoded))
                blob = [block_table([len(frame) for frame, _ in encoded]), *(frame for frame, _ in encoded)]
                stream.writelines(blob)
                sizes[spec.name] = sum(map(len, blob))
            header, _ = encode_header(TensorSpec(name, "uint8", (size,)) for name, size in sizes.items())
            stream.seek(0)
            stream.write((room - 8).to_bytes(8, "little") + header[8:].ljust(room - 8))
    except OSError as error:
        raise PastryError(f"{path}: cannot be written ({error.strerror})") from error
    return sizes


def _encode(source: Skill, spec: TensorSpec, block: tuple[int, int]) -> tuple[bytes, bytes]:
    stored = source.read_block(spec.name, *block)
    return encode_block(stored), block_digest(stored)


def _write_manifest(source: Skill, directory: Path, encoding: str) -> None:
    manifest = source.manifest.model_copy(update={"encoding": encoding})
    write_json(directory / MANIFEST_FILE, manifest.model_dump(mode="json"))


def _sizes(source: Skill, compressed: int) -> Sizes:
    dense = sum(info.nbytes for info in source.tensors.values())
    return Sizes(dense_bytes=dense, compressed_bytes=compressed, ratio=dense / compressed if compressed else None)
