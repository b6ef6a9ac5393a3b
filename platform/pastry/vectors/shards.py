"""Write tensors one after another into safetensors shards, with an index when there is more than one."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pastry.vectors.files import write_json

MAX_SHARD_BYTES = 2_000_000_000


def write_shards(
    directory: Path,
    stem: str,
    sizes: Mapping[str, int],
    make: Callable[[str], torch.Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `make(name)` for all of `sizes` (bytes) to `stem.safetensors` or `stem-00001-of-0000N.safetensors`.

    `make` is called once per tensor, in sorted order, so the bytes do not depend on how the inputs were sharded; at
    most one shard is in memory. A tensor larger than `max_shard_bytes` gets a shard of its own.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(sizes):
        if shards[-1] and filled + sizes[name] > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]

    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        # The "format" key is what transformers looks for before it loads a file.
        save_file({name: make(name) for name in names}, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(directory / f"{stem}.safetensors.index.json", index)
