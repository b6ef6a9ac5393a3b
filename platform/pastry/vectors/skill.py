"""A skill vector on disk: safetensors files and skill.json, the manifest that says what they are."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture
from pastry.vectors.birth import Birth
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.compression.sparse_format import SparseTensors
from pastry.vectors.files import parse_model, read_json
from pastry.vectors.fingerprint import fingerprint, tensor_blocks, tensor_digest
from pastry.vectors.recipe import NAME
from pastry.vectors.safetensors_format import TensorInfo, TensorSpec

if TYPE_CHECKING:
    import torch

MANIFEST_FILE = "skill.json"
TOKENIZER_FILE = "tokenizer.json"
TENSOR_STEM = "skill"


class SkillFacts(BaseModel):
    """What the numbers cannot tell: given by whoever extracts the vector."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=f"^{NAME}$")
    """The name in recipes; no white space, `+`, `@` or `:`."""
    domain: str | None = None
    data_digest: str | None = None
    """Digest of the tasks that RL was trained on."""
    seed: int | None = None
    training_run: str | None = None
    lambda_advice: FiniteFloat | None = None
    """The λ to start from."""
    scores: dict[str, FiniteFloat] = {}


class SkillTensor(BaseModel):
    """One tensor of a skill vector, as stored."""

    model_config = ConfigDict(extra="forbid")

    digest: str
    shape: tuple[NonNegativeInt, ...]
    dtype: str
    norm: FiniteFloat
    zeros: int
    """Elements that are exactly zero."""
    cosine_to_sft: FiniteFloat | None = None
    """Cosine to start − base; None without a base or where either is zero."""
    not_restored: int | None = None
    """Elements where start + 1.0·v, cast to the end's dtype, is not the end bit for bit."""


class SkillSource(BaseModel):
    """One of the skill vectors that a combined one was made of."""

    model_config = ConfigDict(extra="forbid")

    name: str
    fingerprint: str
    weight: FiniteFloat


class SkillManifest(SkillFacts):
    """skill.json. Norms and cosines are of the tensors as stored, accumulated in float64."""

    schema_version: Literal[2] = 2
    method: str
    """difference, random, or the name of the method in merging.py that combined `sources`."""
    fingerprint: str
    """Of the vector's own tensors."""
    end: str | None = None
    """Fingerprint of the checkpoint RL ended with."""
    start: str | None = None
    """Fingerprint of exactly the weights RL started from."""
    base: str | None = None
    control_of: str | None = None
    """Fingerprint of the skill vector that a random one is the control of."""
    encoding: Literal["dense", "sparse-zstd"] = "dense"
    """How the files hold the tensors; digests are of the decoded ones."""
    sources: list[SkillSource] = []
    """The skill vectors that were combined, in order."""
    settings: dict[str, bool | int | FiniteFloat | str] = {}
    """What the combination was made with, defaults included."""
    computed_dtype: Literal["float32"] = "float32"
    stored_dtype: str
    source_dtypes: list[str]
    """The dtypes that the end and the start, or the combined vectors, were stored in."""
    architecture: Architecture
    norm: FiniteFloat
    cosine_to_sft: FiniteFloat | None = None
    birth: Birth | None = None
    """What rounding took before the difference was formed; None where both ends were not rounded, or it is not known."""
    tensors: dict[str, SkillTensor]

    @property
    def not_restored(self) -> int:
        """Elements, in all tensors, where start + 1.0·v is not the end bit for bit."""
        return sum(tensor.not_restored or 0 for tensor in self.tensors.values())

    @property
    def non_zero_share(self) -> float:
        """The share of all elements that are not exactly zero."""
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors.values())
        return 1 - sum(tensor.zeros for tensor in self.tensors.values()) / elements if elements else 0.0


def summarise(tensors: dict[str, SkillTensor]) -> dict[str, object]:
    """The manifest's fields that follow from its tensors."""
    return {
        "tensors": tensors,
        "fingerprint": fingerprint({name: tensor.digest for name, tensor in tensors.items()}),
        "norm": math.sqrt(sum(tensor.norm**2 for tensor in tensors.values())),
    }


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Put the tokenizer.json of `source`, if it has one, beside a skill vector: --vocab intersect needs to know the tokens."""
    if (source / TOKENIZER_FILE).is_file():
        shutil.copyfile(source / TOKENIZER_FILE, directory / TOKENIZER_FILE)


class Skill(TensorDirectory):
    """A skill vector directory, opened lazily; `read(name)` gives a tensor in its stored dtype, digest verified.

    Raises PastryError if there is no such directory or manifest, or if the manifest and the files' headers differ.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._sparse = None
        if self.manifest.encoding == "sparse-zstd":
            specs = {name: TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in self.manifest.tensors.items()}
            self._sparse = SparseTensors(self.tensors, specs, super()._read_bytes)
            self.tensors = self._sparse.tensors
        recorded, stored = self.manifest.tensors, self.tensors
        for name in sorted(recorded.keys() | stored.keys()):
            if name not in stored or name not in recorded:
                where = MANIFEST_FILE if name in recorded else "the safetensors files"
                raise PastryError(f"{self.path}: tensor {name} is only in {where}; extract or pull the skill vector again")
            found = f"{stored[name].dtype} {list(stored[name].shape)}"
            wanted = f"{recorded[name].dtype} {list(recorded[name].shape)}"
            if found != wanted:
                raise PastryError(
                    f"{self.path}: tensor {name} is {found}, {MANIFEST_FILE} says {wanted}; "
                    "extract or pull the skill vector again"
                )

    @cached_property
    def manifest(self) -> SkillManifest:
        path = self.path / MANIFEST_FILE
        if not path.exists():
            raise PastryError(
                f"{self.path}: no {MANIFEST_FILE}, so this is not a skill vector; make one with `pastry vector extract`"
            )
        return parse_model(SkillManifest, read_json(path), str(path))

    @property
    def architecture(self) -> Architecture:
        return self.manifest.architecture

    def check_digest(self, name: str, blocks: Iterable[bytes]) -> None:
        """Raise PastryError if the digests of a tensor's blocks do not make up the digest in the manifest."""
        found, wanted = tensor_digest(self.tensors[name], blocks), self.manifest.tensors[name].digest
        if found != wanted:
            raise PastryError(
                f"{self.path}: tensor {name} has digest {found}, {MANIFEST_FILE} says {wanted}; "
                "the file is damaged, extract or pull it again"
            )

    def _read_bytes(self, info: TensorInfo, offset: int, into: memoryview) -> None:
        if self._sparse:
            self._sparse.read(info, offset, into)
        else:
            super()._read_bytes(info, offset, into)

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name`; PastryError if its digest is not the manifest's, KeyError if there is no such tensor."""
        if self._sparse:
            self._sparse.check(name)
        try:
            tensor = super().read(name)
        except RuntimeError as error:
            needed = self.tensors[name].nbytes
            raise PastryError(f"{self.path}: tensor {name} needs {needed} bytes, more memory than there is") from error
        self.check_digest(name, tensor_blocks(tensor))
        return tensor

    def verify(self) -> None:
        """Read everything; PastryError naming the first tensor whose digest differs, or the whole's fingerprint."""
        for name in sorted(self.tensors):
            self.check_digest(name, self.block_digests(name))
        found = fingerprint({name: tensor.digest for name, tensor in self.manifest.tensors.items()})
        if found != self.manifest.fingerprint:
            raise PastryError(
                f"{self.path}: the tensors' fingerprint is {found}, {MANIFEST_FILE} says {self.manifest.fingerprint}; "
                "extract or pull it again"
            )
