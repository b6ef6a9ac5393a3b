"""The safetensors format: where each tensor's bytes lie in a file, checked against the file before anything is believed.

The format is safetensors' own (https://github.com/huggingface/safetensors); its library gives no offsets, which reading
and writing block by block need.
"""

import json
import math
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from pastry.errors import PastryError
from pastry.vectors.files import parse_json

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16,
    "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6, "C64": 64,
}  # fmt: skip
# Only the dtypes that Pastry stores get torch's name; the others keep safetensors' code and are refused by it.
DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "U8": "uint8"}
_CODES = {name: code for code, name in DTYPE_NAMES.items()}
MAX_HEADER_BYTES = 100_000_000  # the library's own bound
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, dtype ("float32", …) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * BITS[_CODES.get(self.dtype, self.dtype)] // 8


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """One tensor as its file's header describes it; `offset` counts bytes from the beginning of the file."""

    file: Path
    offset: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; PastryError if the header is malformed or does not describe the file's bytes.

    Nothing is allocated that the file's size does not cover: the header's length is checked against it first, and the
    tensors must fill the rest of the file without gap or overlap. Stricter than safetensors' own library, which accepts
    names that stand there twice, entries with more keys or written as lists, over 64 dimensions, and sizes from 2^63.
    """
    if not os.path.isfile(file):
        raise PastryError(f"{file}: cannot be read (not a regular file)")
    try:
        with open(file, "rb") as stream:
            size = file.stat().st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _malformed(file, f"the header is said to be {length} bytes long, the file has {size}")
            text = stream.read(length)
    except OSError as error:
        raise PastryError(f"{file}: cannot be read ({error.strerror})") from error
    try:
        header = parse_json(text.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_int=_natural)
    except (ValueError, RecursionError) as error:
        raise _malformed(file, f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _malformed(file, "the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(file, "__metadata__ is not an object of strings")
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    expected = 8 + length
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != expected:
            raise _malformed(file, f"tensor {info.name} begins at byte {info.offset}, wanted {expected}")
        expected += info.nbytes
    if expected != size:
        raise _malformed(file, f"the tensors end at byte {expected}, the file at {size}")
    return tensors


def encode_header(tensors: Iterable[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The bytes in front of `tensors` stored in this order, and each one's offset from the beginning of the file."""
    # The "format" key is what transformers looks for before it loads a file.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for spec in tensors:
        header[spec.name] = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    starts = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    return len(text).to_bytes(8, "little") + text, starts


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(file, f"tensor {name}: wanted the keys dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _malformed(file, f"tensor {name}: dtype {dtype!r} is unknown")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _malformed(file, f"tensor {name}: shape or data_offsets are not lists of natural numbers")
    if not all(size < 1 << 64 for size in accumulate([*shape, BITS[dtype]], operator.mul)):
        raise _malformed(file, f"tensor {name}: {dtype} {shape} is too large to count")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _malformed(file, f"tensor {name}: {dtype} {shape} does not fill bytes {offsets[0]} to {offsets[1]}")
    return TensorInfo(name, DTYPE_NAMES.get(dtype, dtype), tuple(shape), file, data_start + offsets[0])


def _naturals(value: Any) -> bool:
    # Below 2^63, as in the format: a header may claim numbers of a thousand digits.
    return isinstance(value, list) and len(value) <= 64 and all(type(x) is int and 0 <= x < 1 << 63 for x in value)


def _natural(digits: str) -> int:
    # JSON's integers may be negative, and −0 would be 0.
    if digits.startswith("-"):
        raise ValueError(f"{digits} is not a natural number")
    return int(digits)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands there twice")
    return document


def _malformed(file: Path, what: str) -> PastryError:
    return PastryError(f"{file}: not a valid safetensors file ({what}); copy or download it again")
