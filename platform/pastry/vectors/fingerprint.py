"""Digests of tensors, and of whole checkpoints independent of sharding and file order."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from pastry.vectors.checkpoint import TensorDirectory


def tensor_digest(tensor: torch.Tensor) -> str:
    """ "sha256:…" over dtype, shape and the raw little-endian bytes of a CPU tensor of any dtype and shape."""
    header = json.dumps([str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
    digest = hashlib.sha256(header.encode())
    # Flattened first: a tensor without dimensions cannot be viewed as bytes.
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return "sha256:" + digest.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """ "sha256:…" over tensor names and their digests, whatever their order."""
    return "sha256:" + hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def checkpoint_fingerprint(path: Path) -> str:
    """Fingerprint of all tensors in the directory `path`; raises PastryError if it cannot be opened."""
    directory = TensorDirectory(path)
    return fingerprint({name: tensor_digest(directory.read(name)) for name in directory.tensors})
