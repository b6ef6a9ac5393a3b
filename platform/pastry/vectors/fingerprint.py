"""Digests of tensors, and of whole checkpoints independent of sharding and file order.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) over blocks, then over the blocks' digests: a tensor can be digested
by several threads in any order, while it is being read or written for another purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

from pastry.vectors.rounding import BLOCK
from pastry.vectors.safetensors_format import TensorSpec

if TYPE_CHECKING:
    import torch

PREFIX = "blake3:"


def block_digest(stored: np.ndarray) -> bytes:
    """32 bytes over a block's raw little-endian bytes."""
    digest = blake3()
    digest.update(stored.view(np.uint8))  # lets other threads run, as the constructor with the bytes would not
    return digest.digest()


def tensor_blocks(tensor: torch.Tensor) -> Iterator[bytes]:
    """The digests of the blocks of a tensor in memory."""
    import torch

    stored = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    step = BLOCK * tensor.itemsize
    return (block_digest(stored[start : start + step]) for start in range(0, stored.size, step))


def tensor_digest(spec: TensorSpec, blocks: Iterable[bytes]) -> str:
    """ "blake3:…" over dtype, shape and the digests of the tensor's blocks in order."""
    digest = blake3(json.dumps([spec.dtype, list(spec.shape)]).encode())
    for block in blocks:
        digest.update(block)
    return PREFIX + digest.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """ "blake3:…" over tensor names and their digests, whatever their order."""
    return PREFIX + blake3(json.dumps(sorted(digests.items())).encode()).hexdigest()
