"""A skill vector kept as low-rank factors: each matrix is v = B·diag(s)·A, multiplied out block by block while it is read.

This is what a difference of LoRA adapters is (Hu et al. 2021, arXiv 2106.09685, ΔW = s·B·A):
s₁B₁A₁ − s₀B₀A₀ = [B₁, B₀] · diag(s₁…, −s₀…) · [A₁; A₀], of rank r₁ + r₀.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numba import njit
from pydantic import FiniteFloat, model_validator

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.files import parse_model, read_json
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.rounding import Scratch, overflow_advice, widen
from pastry.vectors.safetensors_format import TensorSpec, encode_header
from pastry.vectors.skill import MANIFEST_FILE, Skill, SkillManifest, SkillTensor

if TYPE_CHECKING:
    import torch

METHOD = "adapter_difference"
FACTORS_FILE = "factors.safetensors"
# More than the tensors that any number of threads work on at once, as they go through a shard in order.
_TENSORS_IN_MEMORY = 16
_CHUNK = 512

Term = tuple[int, FiniteFloat]
"""(rank, scale) of one product s·B·A in a tensor's sum."""


class FactoredTensor(SkillTensor):
    """One tensor of a factored skill vector; `shape` is the whole matrix's, `digest` is over its shape, scales and factors.

    `zeros` counts the elements whose row of B or column of A is zero.
    """

    terms: list[Term] = []
    """Of the products that are summed, in the order of B's columns and A's rows. None: the tensor is exactly zero."""

    @model_validator(mode="after")
    def _only_matrices_have_factors(self) -> FactoredTensor:
        if self.terms and len(self.shape) != 2:
            raise ValueError(f"terms are for matrices, the shape is {list(self.shape)}")
        return self


class FactoredManifest(SkillManifest):
    """skill.json of a factored skill vector. `end` and `start` are fingerprints of adapters; no start: the base itself."""

    method: Literal["adapter_difference"]
    base_model: str | None = None
    """base_model_name_or_path of the adapters."""
    tensors: dict[str, FactoredTensor]


class FactoredSkill:
    """A factored skill vector directory, read like a `Skill`: `tensors` are the whole matrices, in float32.

    A tensor's factors (float32 B [out, rank] and A [rank, in]) are read when its first block is, and their digest is
    verified then. Raises PastryError if there is no such directory or manifest, or if the manifest and the factors differ.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._files = TensorDirectory(path)
        self.tensors = {name: TensorSpec(name, t.dtype, t.shape) for name, t in self.manifest.tensors.items()}
        wanted = {factor.name: factor for name in self.tensors for factor in self._factor_specs(name)}
        found = {info.name: TensorSpec(info.name, info.dtype, info.shape) for info in self._files.tensors.values()}
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise PastryError(
                    f"{self.path}: factor {name} is {_describe(found.get(name))}, {MANIFEST_FILE} says "
                    f"{_describe(wanted.get(name))}; extract or pull the skill vector again"
                )
        self._factors = lru_cache(_TENSORS_IN_MEMORY)(self._read_factors)

    @cached_property
    def manifest(self) -> FactoredManifest:
        path = self.path / MANIFEST_FILE
        return parse_model(FactoredManifest, read_json(path), str(path))

    @property
    def architecture(self) -> Architecture:
        return self.manifest.architecture

    def widened_block(self, name: str, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """Elements `start` to `stop` of the matrix in float32, twice: they have no stored form. Without factors exact zeros.

        Each element is summed in float64 and rounded once; its bits do not depend on the block it is read in.
        """
        values = scratch((self, "values"), np.float32, stop - start)
        factors = self._factors(name)
        if factors is None:
            values.fill(0)
        else:
            multiply_block(*factors, start, values)
            widen(values, values, f"{self.path}: tensor {name}", self.tensors[name].shape, start, overflow_advice("float32"))
        return values, values

    def block_digests(self, name: str) -> Iterator[bytes]:
        """The digests of a tensor's scales, B and A as they are on disk: what makes up its digest."""
        return _part_digests(self.manifest.tensors[name].terms, self._stored_factors(name))

    def check_digest(self, name: str, blocks: Iterable[bytes]) -> None:
        """Nothing is left to check of the blocks: they were computed from factors whose digest was verified."""

    def read(self, name: str) -> torch.Tensor:
        """The whole matrix in float32; PastryError if its factors' digest is not the manifest's, KeyError if unknown."""
        import torch

        spec = self.tensors[name]
        values = self.widened_block(name, 0, spec.elements, Scratch())[0]
        return torch.from_numpy(values).reshape(spec.shape)

    def verify(self) -> None:
        """Read all factors; PastryError naming the first tensor whose digest differs, or the whole's fingerprint."""
        for name in sorted(self.tensors):
            self._read_factors(name)
        found = fingerprint({name: tensor.digest for name, tensor in self.manifest.tensors.items()})
        if found != self.manifest.fingerprint:
            raise PastryError(
                f"{self.path}: the tensors' fingerprint is {found}, {MANIFEST_FILE} says {self.manifest.fingerprint}; "
                "extract or pull it again"
            )

    def _factor_specs(self, name: str) -> list[TensorSpec]:
        tensor = self.manifest.tensors[name]
        return factor_specs(tensor.shape, name, tensor.terms) if tensor.terms else []

    def _stored_factors(self, name: str) -> list[np.ndarray]:
        return [self._files.read_block(f.name, 0, f.elements).reshape(f.shape) for f in self._factor_specs(name)]

    def _read_factors(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        tensor, factors = self.manifest.tensors[name], self._stored_factors(name)
        found = tensor_digest(self.tensors[name], _part_digests(tensor.terms, factors))
        if found != tensor.digest:
            raise PastryError(
                f"{self.path}: tensor {name} has digest {found}, {MANIFEST_FILE} says {tensor.digest}; "
                "the file is damaged, extract or pull it again"
            )
        if not factors:
            return None
        b, a = factors
        return b * scales(tensor.terms), a


AnySkill = Skill | FactoredSkill


def open_skill(path: Path) -> AnySkill:
    """The skill vector in the directory `path`, factored or not; PastryError if it is none."""
    manifest = Path(path) / MANIFEST_FILE
    factored = manifest.is_file() and read_json(manifest).get("method") == METHOD
    return FactoredSkill(path) if factored else Skill(path)


def factor_specs(shape: tuple[int, ...], name: str, terms: list[Term]) -> list[TensorSpec]:
    """How B [out, rank] and A [rank, in] of the tensor `name` of this shape are stored."""
    rank = sum(rank for rank, _ in terms)
    return [
        TensorSpec(f"{name}.lora_B", "float32", (shape[0], rank)),
        TensorSpec(f"{name}.lora_A", "float32", (rank, shape[1])),
    ]


def scales(terms: list[Term]) -> np.ndarray:
    """float64[rank]: the scale of each column of B."""
    return np.repeat([scale for _, scale in terms], [rank for rank, _ in terms])


def describe_factors(spec: TensorSpec, terms: list[Term], b: np.ndarray, a: np.ndarray) -> FactoredTensor:
    """The manifest's entry for `spec` = B·diag(s)·A (float32 b [out, rank], a [rank, in]).

    ‖B·diag(s)·A‖ = ‖R_B·diag(s)·R_Aᵀ‖ for the triangular factors of B and Aᵀ (Golub and Van Loan, Matrix Computations,
    5.2), in float64: exact where the terms nearly cancel, without the whole matrix.
    """
    s = scales(terms)
    r_b, r_a = (np.linalg.qr(side.astype(np.float64), mode="r") for side in (b, a.T))
    rows, columns = np.count_nonzero((b * s).any(axis=1)), np.count_nonzero(a.any(axis=0))
    return FactoredTensor(
        digest=tensor_digest(spec, _part_digests(terms, [b, a])),
        shape=spec.shape,
        dtype=spec.dtype,
        norm=float(np.linalg.norm((r_b * s) @ r_a.T)),
        zeros=spec.elements - int(rows * columns),
        terms=terms,
    )


def zero_tensor(spec: TensorSpec) -> FactoredTensor:
    """The manifest's entry for a tensor that no adapter changes."""
    digest = tensor_digest(spec, [])
    return FactoredTensor(digest=digest, shape=spec.shape, dtype=spec.dtype, norm=0.0, zeros=math.prod(spec.shape))


def write_safetensors(path: Path, specs: list[TensorSpec], arrays: Iterable[np.ndarray]) -> None:
    """Write float32 `arrays`, which come one at a time in the order and with the shapes of `specs`, to a new file."""
    with open(path, "wb") as stream:
        stream.write(encode_header(specs)[0])
        for spec, array in zip(specs, arrays, strict=True):
            if array.shape != spec.shape or array.dtype != np.float32:
                raise ValueError(f"{spec.name}: {array.dtype} {array.shape} is not {spec}")
            stream.write(np.ascontiguousarray(array))


@njit(nogil=True, cache=True)
def multiply_block(b, a, start, values):
    """Elements `start` … of B·A, row by row, into float32 `values`; b is float64 [out, rank], a float32 [rank, in].

    Summed in float64 in the order of the rank, then rounded: the same bits on every machine, for every range.
    """
    columns = a.shape[1]
    sums = np.empty(_CHUNK, np.float64)
    for left in range(0, columns, _CHUNK):
        for row in range(start // columns, (start + values.size - 1) // columns + 1):
            offset = row * columns - start
            first, stop = max(left, -offset), min(left + _CHUNK, columns, values.size - offset)
            if first >= stop:
                continue
            sums[: stop - first] = 0
            for k in range(a.shape[0]):
                # A slice of its own: indices that surely are not negative let the compiler use vector registers.
                factor, part = b[row, k], a[k, first:stop]
                for j in range(part.size):
                    sums[j] += factor * part[j]
            values[offset + first : offset + stop] = sums[: stop - first]


def _part_digests(terms: list[Term], factors: list[np.ndarray]) -> Iterator[bytes]:
    return (block_digest(part) for part in ([scales(terms), *factors] if factors else []))


def _describe(spec: TensorSpec | None) -> str:
    return f"{spec.dtype} {list(spec.shape)}" if spec else "not there"
