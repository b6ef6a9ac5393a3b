"""What a skill vector consists of, from its manifest and file sizes alone: norms, sizes and zeros by layer and module."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pastry.vectors.geometry.updates import ByModule, by_module
from pastry.vectors.modules import layer_and_module
from pastry.vectors.skill import Skill


@dataclass(frozen=True)
class Extent:
    """How large an update is in some of its elements."""

    elements: int = 0
    squares: float = 0.0
    """Σ v_i²."""
    zeros: int = 0
    """Elements that are exactly zero."""

    def __add__(self, other: "Extent") -> "Extent":
        return Extent(self.elements + other.elements, self.squares + other.squares, self.zeros + other.zeros)

    @property
    def norm(self) -> float:
        return math.sqrt(self.squares)

    @property
    def rms(self) -> float:
        """norm / √n: the size of a typical element."""
        return math.sqrt(self.squares / self.elements) if self.elements else 0.0

    @property
    def sparsity(self) -> float:
        """The share of elements that are exactly zero."""
        return self.zeros / self.elements if self.elements else 0.0

    def document(self) -> dict[str, float | int]:
        """What `pastry vector inspect --json` says of it."""
        facts = asdict(self) | {"norm": self.norm, "rms": self.rms, "sparsity": self.sparsity}
        return {key: value for key, value in facts.items() if key != "squares"}


def extents(skill: Skill) -> ByModule[Extent]:
    """Each layer's modules; a weight and its bias count together."""
    rows: dict[tuple[str, str], Extent] = {}
    for name, tensor in skill.manifest.tensors.items():
        key = layer_and_module(name)
        rows[key] = rows.get(key, Extent()) + Extent(math.prod(tensor.shape), tensor.norm**2, tensor.zeros)
    return by_module(rows)


def whole(table: ByModule[Extent]) -> Extent:
    """All elements together."""
    return sum((cell for row in table.values() for cell in row.values()), Extent())


def bytes_on_disk(skill: Skill) -> int:
    """Of all files in the directory."""
    return sum(file.stat().st_size for file in skill.path.iterdir() if file.is_file())


def document(skill: Skill) -> dict[str, Any]:
    """The manifest, and the sums over it: "elements", "bytes", "rms", "sparsity", "modules" (layer → module → sizes)."""
    table = extents(skill)
    modules = {layer: {module: cell.document() for module, cell in row.items()} for layer, row in table.items()}
    sums = whole(table).document() | {"bytes": bytes_on_disk(skill), "modules": modules}
    return sums | skill.manifest.model_dump(mode="json")
