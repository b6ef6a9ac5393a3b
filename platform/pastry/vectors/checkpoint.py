"""Open a Hugging Face checkpoint directory lazily: headers first, tensors block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture, read_architecture
from pastry.vectors.files import read_json
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.rounding import FLOAT_DTYPES, Scratch, block_ranges, widen
from pastry.vectors.safetensors_format import DTYPE_NAMES, TensorInfo, read_header

if TYPE_CHECKING:
    import torch  # starting without it saves a second and 250 MB


class TensorDirectory:
    """The safetensors files of one directory. Opening reads headers only.

    `model.safetensors` wins over an index, as in transformers; an index wins over other files; without either, all
    `*.safetensors` are read. Raises PastryError for a missing directory, no safetensors, a corrupt file, a tensor
    stored twice, and an index that does not agree with its files.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if not os.path.exists(self.path):
            raise PastryError(f"{self.path}: no such directory")
        if not self.path.is_dir():
            raise PastryError(f"{self.path} is a file; give the directory that holds it")
        if not _is_utf8(str(self.path)):
            raise PastryError(f"{str(self.path)!r}: the path is not UTF-8, so reports could not name it; rename the directory")
        weight_map = self._read_index()
        files = sorted(set(weight_map.values())) if weight_map is not None else self._list_files()
        self.tensors: dict[str, TensorInfo] = {}
        self._streams: dict[Path, IO[bytes]] = {}
        for file in files:
            for name, info in read_header(self.path / file).items():
                if name in self.tensors:
                    other = self.tensors[name].file.name
                    raise PastryError(f"{info.file}: tensor {name} is also in {other}; remove the stale file")
                self.tensors[name] = info
        if weight_map is not None:
            self._check_index(weight_map)

    def read_block(self, name: str, start: int, stop: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """Elements `start` to `stop` of a floating-point tensor, as stored (FLOAT_DTYPES), in `buffer` if one is given.

        Several threads may read at once. Raises KeyError for an unknown name, PastryError for an unreadable file.
        """
        info = self.tensors[name]
        dtype = _float_dtype(info)
        block = np.empty(stop - start, dtype) if buffer is None else buffer
        self._read_bytes(info, start * dtype.itemsize, memoryview(block).cast("B"))
        return block

    def widened_block(self, name: str, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """Elements `start` to `stop` in float32 and as stored, in memory of `scratch`. NaN or Inf is a PastryError."""
        info = self.tensors[name]
        stored = scratch((self, "stored"), _float_dtype(info), stop - start)
        self.read_block(name, start, stop, stored)
        values = scratch((self, "values"), np.float32, stop - start)
        return widen(stored, values, f"{self.path}: tensor {name}", info.shape, start), stored

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored dtype and shape, on the CPU.

        Raises KeyError for an unknown name, PastryError for a dtype that Pastry does not store or an unreadable file.
        """
        import torch

        info = self.tensors[name]
        if info.dtype not in DTYPE_NAMES.values():
            wanted = ", ".join(DTYPE_NAMES.values())
            raise PastryError(f"{info.file}: tensor {name} has dtype {info.dtype}, wanted one of {wanted}")
        tensor = torch.empty(info.shape, dtype=getattr(torch, info.dtype))
        if info.elements:
            self._read_bytes(info, 0, memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
        return tensor

    def block_digests(self, name: str) -> Iterator[bytes]:
        """The digests of a tensor's blocks as they are on disk."""
        return (block_digest(self.read_block(name, *block)) for block in block_ranges(self.tensors[name].elements))

    def digests(self) -> dict[str, str]:
        """The digest of every tensor as it is on disk."""
        return {name: tensor_digest(info, self.block_digests(name)) for name, info in sorted(self.tensors.items())}

    def stamp(self) -> dict[str, list[int]]:
        """Each file's size and time of change: what tells, without reading it all, that a directory is the same as before."""
        states = {name: (self.path / name).stat() for name in self._list() if os.path.isfile(self.path / name)}
        # Names that are not UTF-8 cannot stand in JSON.
        shown = {name: os.fsencode(name).decode("utf-8", "backslashreplace") for name in states}
        return {shown[name]: [state.st_size, state.st_mtime_ns] for name, state in states.items()}

    def _read_bytes(self, info: TensorInfo, offset: int, into: memoryview) -> None:
        try:
            stream = self._streams.get(info.file)
            if stream is None:
                # setdefault: of two threads that open at once, both go on with the same stream.
                stream = self._streams.setdefault(info.file, open(info.file, "rb", buffering=0))  # noqa: SIM115
            position = info.offset + offset
            while into:
                read = os.preadv(stream.fileno(), [into], position)
                if not read:
                    raise PastryError(f"{info.file}: tensor {info.name} ends too early; the file was changed while it was read")
                into, position = into[read:], position + read
        except OSError as error:
            raise PastryError(f"{info.file}: tensor {info.name} cannot be read ({error.strerror})") from error

    def _read_index(self) -> dict[str, str] | None:
        indexes = sorted(self.path.glob("*.safetensors.index.json"))
        if not indexes or (self.path / "model.safetensors").exists():
            return None
        if len(indexes) > 1:
            found = ", ".join(index.name for index in indexes)
            raise PastryError(f"{self.path}: found several indexes ({found}), wanted one; remove the stale ones")
        weight_map = read_json(indexes[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise PastryError(f"{indexes[0]}: key weight_map is missing or empty; wanted tensor name → file name")
        for name, file in weight_map.items():
            # A plain file name: nothing in an index may point out of its directory.
            if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
                raise PastryError(
                    f"{indexes[0]}: tensor {name} is said to be in {file!r}; "
                    "wanted the name of a .safetensors file in this directory"
                )
            if not os.path.isfile(self.path / file):
                raise PastryError(
                    f"{indexes[0]}: tensor {name} is said to be in {file}, which does not exist; "
                    "complete the download or the copy"
                )
        return weight_map

    def _list_files(self) -> list[str]:
        if (self.path / "model.safetensors").exists():
            return ["model.safetensors"]
        found = self._list()
        files = [name for name in found if name.endswith(".safetensors")]
        if not files:
            advice = ""
            if any(name.endswith((".bin", ".pt", ".pth")) for name in found):
                advice = "; pickle files are never read, save the model again as safetensors"
            raise PastryError(f"{self.path}: wanted *.safetensors, found {', '.join(found[:8]) or 'nothing'}{advice}")
        return files

    def _list(self) -> list[str]:
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise PastryError(f"{self.path}: cannot be listed ({error.strerror})") from error

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise PastryError(
                    f"{self.path}: the index says tensor {name} is in {file}, but it is not there; copy or download both again"
                )
        for name, info in self.tensors.items():
            if name not in weight_map:
                raise PastryError(f"{info.file}: tensor {name} is not in the index; copy or download both again")


def _float_dtype(info: TensorInfo) -> np.dtype:
    if info.dtype not in FLOAT_DTYPES:
        raise PastryError(f"{info.file}: tensor {info.name} has dtype {info.dtype}, wanted one of {', '.join(FLOAT_DTYPES)}")
    return FLOAT_DTYPES[info.dtype]


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


class Checkpoint(TensorDirectory):
    """A local Hugging Face checkpoint: `tensors`, `read(name)`, `config` (config.json) and `architecture`."""

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @cached_property
    def architecture(self) -> Architecture:
        return read_architecture(self.path, self.config)


def checkpoint_fingerprint(path: Path) -> str:
    """Fingerprint of all tensors in the directory `path`; raises PastryError if it cannot be opened."""
    return fingerprint(TensorDirectory(path).digests())
