"""Write a directory of tensors that is computed block by block: shard after shard, resumable, and only ever whole.

Reads, arithmetic and writes overlap because several threads each take a block through all three; the compiled loops and
the system calls let them run at the same time.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pastry.errors import PastryError
from pastry.vectors.files import fsync, read_json, resumable_directory, write_json
from pastry.vectors.rounding import Scratch, block_ranges
from pastry.vectors.safetensors_format import TensorSpec, encode_header

MAX_SHARD_BYTES = 2_000_000_000
SYNC_BLOCKS = 64
"""After so many blocks what was written is sent to the disk, which then works while we compute."""


class Work(Protocol):
    """What is written: numbers for each block, and a JSON record for each tensor once its blocks are done."""

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, Any]:
        """Elements `start` to `stop` of the output tensor, as stored, and whatever `record` needs to know of them."""

    def record(self, spec: TensorSpec, facts: list[Any]) -> dict[str, Any]:
        """The tensor's record from its blocks' facts in order. May refuse the tensor with a PastryError."""


Open = Callable[[], Work]
"""Opens the inputs; called in every process that takes part, so it must be picklable."""
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""Like `map`, over processes that share a file system: results in order."""
Progress = Callable[[int, int], None]
"""Told how many bytes of how many are written."""


@dataclass(frozen=True)
class Shard:
    """One file and the tensors in it, in the order of their names."""

    file: str
    tensors: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.tensors)


def plan_shards(stem: str, tensors: Iterable[TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """`stem.safetensors`, or `stem-00001-of-0000N.safetensors` of at most `max_shard_bytes` (a larger tensor stands alone).

    Tensors are sorted by name, so the plan does not depend on how the inputs were sharded.
    """
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in sorted(tensors, key=lambda spec: spec.name):
        if groups[-1] and filled + spec.nbytes > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    if len(groups) == 1:
        return [Shard(f"{stem}.safetensors", tuple(groups[0]))]
    return [Shard(f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors", tuple(g)) for i, g in enumerate(groups, start=1)]


@contextmanager
def sharded_output(
    out: Path,
    shards: list[Shard],
    open_work: Open,
    identity: dict[str, Any],
    *,
    spread: Spread | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write `shards`, then give (directory to add files to, tensor name → record); `out` appears when the block ends.

    `identity` (JSON) says what is being written: a killed run's finished shards are kept by the next one with the same
    `identity`. With `spread`, shards are written by several processes. Raises what the work raises, and then leaves nothing.
    """
    total = sum(shard.nbytes for shard in shards)
    done = 0
    lock = threading.Lock()

    def tick(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            if progress:
                progress(done, total)

    with resumable_directory(out, identity) as (data, notes):
        missing = [shard for shard in shards if not _note(notes, shard).exists()]
        _check_space(data, missing)
        tick(total - sum(shard.nbytes for shard in missing))
        if spread and len(missing) > 1:
            for shard, _ in zip(missing, spread(partial(_write_shard, open_work, data, notes), missing), strict=True):
                tick(shard.nbytes)
        elif missing:
            _write_here(open_work(), data, notes, missing, tick)
        records = {name: record for shard in shards for name, record in read_json(_note(notes, shard)).items()}
        write_index(data, shards, total)
        yield data, records


def write_index(directory: Path, shards: list[Shard], total_size: int) -> None:
    """Write which tensor is in which of the files, as transformers looks for it, if there are several."""
    if len(shards) > 1:
        stem = shards[0].file.partition("-00001-of-")[0]
        weight_map = {spec.name: shard.file for shard in shards for spec in shard.tensors}
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(directory / f"{stem}.safetensors.index.json", index)


def _check_space(data: Path, missing: list[Shard]) -> None:
    there = sum((data / shard.file).stat().st_blocks * 512 for shard in missing if (data / shard.file).exists())
    needed, free = sum(shard.nbytes for shard in missing), shutil.disk_usage(data).free + there
    if needed > free:
        found = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise PastryError(f"{data.parent.parent}: {found}; make room or choose another --out")


def _note(notes: Path, shard: Shard) -> Path:
    """The file whose existence says that a shard is complete and on disk; it holds the tensors' records."""
    return notes / f"{shard.file}.json"


def _write_shard(open_work: Open, data: Path, notes: Path, shard: Shard) -> None:
    _write_here(open_work(), data, notes, [shard], lambda nbytes: None)


def _write_here(work: Work, data: Path, notes: Path, shards: list[Shard], tick: Callable[[int], None]) -> None:
    def seal(shard: Shard, records: dict[str, Any]) -> None:
        fsync(data / shard.file)
        write_json(_note(notes, shard), records)

    threads = len(os.sched_getaffinity(0)) + 1  # one of them usually waits for the disk
    scratch = Scratch()
    # One thread waits for the disk while the others compute the next shard.
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as sealer:
        sealed = []
        for shard in shards:
            records = _fill(work, data / shard.file, shard, pool, sealer, scratch, tick)
            sealed.append(sealer.submit(seal, shard, records))
        for future in sealed:
            future.result()


def _fill(
    work: Work,
    path: Path,
    shard: Shard,
    pool: ThreadPoolExecutor,
    sealer: ThreadPoolExecutor,
    scratch: Scratch,
    tick: Callable[[int], None],
) -> dict[str, Any]:
    header, offsets = encode_header(shard.tensors)
    with open(path, "wb", buffering=0) as stream:
        stream.write(header)
        descriptor = stream.fileno()
        done = itertools.count(1)

        def write(spec: TensorSpec, start: int, stop: int) -> Any:
            stored, facts = work.block(spec, start, stop, scratch)
            left, position = memoryview(stored).cast("B"), offsets[spec.name] + start * stored.itemsize
            try:
                while left:
                    written = os.pwrite(descriptor, left, position)
                    left, position = left[written:], position + written
            except OSError as error:
                raise PastryError(f"{path}: cannot be written ({error.strerror})") from error
            tick(stored.nbytes)
            if next(done) % SYNC_BLOCKS == 0:
                sealer.submit(fsync, path)
            return facts

        futures = {spec: [pool.submit(write, spec, *block) for block in block_ranges(spec.elements)] for spec in shard.tensors}
        try:
            return {spec.name: work.record(spec, [future.result() for future in futures[spec]]) for spec in shard.tensors}
        except BaseException:
            for blocks in futures.values():
                for future in blocks:
                    future.cancel()
            raise
