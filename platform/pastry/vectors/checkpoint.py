"""Open a Hugging Face checkpoint directory lazily: headers first, tensors one at a time."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture, read_architecture
from pastry.vectors.files import read_json

# Only the dtypes that Pastry computes with get torch's name; the others keep safetensors' code and are refused by it.
DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class TensorDirectory:
    """The safetensors files of one directory. Opening reads headers only.

    `model.safetensors` wins over an index, as in transformers; an index wins over other files; without either, all
    `*.safetensors` are read. Raises PastryError for a missing directory, no safetensors, a corrupt file, a tensor
    stored twice, and an index that does not agree with its files.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        if not self.path.exists():
            raise PastryError(f"{self.path}: no such directory")
        if not self.path.is_dir():
            raise PastryError(f"{self.path} is a file; give the directory that holds it")
        weight_map = self._read_index()
        files = sorted(set(weight_map.values())) if weight_map is not None else self._list_files()
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            self._read_header(self.path / file)
        if weight_map is not None:
            self._check_index(weight_map)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in its stored dtype and shape, on the CPU. Raises KeyError for an unknown name."""
        file = self.tensors[name].file
        try:
            # Opened anew each time: an open file's touched pages would count as our memory until it is closed.
            with safe_open(file, framework="pt") as handle:
                return handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise PastryError(f"{file}: tensor {name} cannot be read ({error})") from error

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
            if not (self.path / file).is_file():
                raise PastryError(
                    f"{indexes[0]}: tensor {name} is said to be in {file}, which does not exist; "
                    "complete the download or the copy"
                )
        return weight_map

    def _list_files(self) -> list[str]:
        if (self.path / "model.safetensors").exists():
            return ["model.safetensors"]
        files = sorted(file.name for file in self.path.glob("*.safetensors"))
        if not files:
            found = sorted(file.name for file in self.path.iterdir())
            advice = ""
            if any(name.endswith((".bin", ".pt", ".pth")) for name in found):
                advice = "; pickle files are never read, save the model again as safetensors"
            raise PastryError(f"{self.path}: wanted *.safetensors, found {', '.join(found[:8]) or 'nothing'}{advice}")
        return files

    def _read_header(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as handle:
                entries = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
                headers = {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries.items()}
        except (SafetensorError, OSError) as error:
            raise PastryError(f"{file}: not a valid safetensors file ({error}); copy or download it again") from error
        for name, (dtype, shape) in headers.items():
            if name in self.tensors:
                raise PastryError(f"{file}: tensor {name} is also in {self.tensors[name].file.name}; remove the stale file")
            self.tensors[name] = TensorInfo(name, DTYPE_NAMES.get(dtype, dtype), shape, file)

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for name, file in weight_map.items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise PastryError(
                    f"{self.path}: the index says tensor {name} is in {file}, but it is not there; copy or download both again"
                )
        for name, info in self.tensors.items():
            if name not in weight_map:
                raise PastryError(f"{info.file}: tensor {name} is not in the index; copy or download both again")


class Checkpoint(TensorDirectory):
    """A local Hugging Face checkpoint: `tensors`, `read(name)`, `config` (config.json) and `architecture`."""

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @cached_property
    def architecture(self) -> Architecture:
        return read_architecture(self.path, self.config)
