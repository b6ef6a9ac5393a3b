"""How two updates of one architecture lie to each other: cosines, whole and per layer and module."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import Weights, check_same_architecture
from pastry.vectors.rounding import to_float32
from pastry.vectors.skill import Skill
from pastry.vectors.sums import cosine_from_dots, dot

OUTSIDE_LAYERS = "-"
_IN_LAYER = re.compile(r"(?:model\.language_model|model|transformer)\.(?:layers|h)\.(\d+)\.(.+)")


class Update(Protocol):
    """A change of weights: `read(name)` gives one tensor of it in float32."""

    weights: Weights

    def read(self, name: str) -> torch.Tensor: ...


class SkillUpdate:
    """A skill vector, as an update."""

    def __init__(self, path: Path):
        self.weights = self._skill = Skill(path)

    def read(self, name: str) -> torch.Tensor:
        return to_float32(self._skill.read(name), f"{self._skill.path}: tensor {name}")


class CheckpointUpdate:
    """end − start of two checkpoints, subtracted in float32 while it is read; the SFT update is one."""

    def __init__(self, end: Path, start: Path):
        self.weights = self._end = Checkpoint(end)
        self._start = Checkpoint(start)
        check_same_architecture(self._end, self._start, chat_template=False)

    def read(self, name: str) -> torch.Tensor:
        end, start = (to_float32(side.read(name), f"{side.path}: tensor {name}") for side in (self._end, self._start))
        return end - start


def cosine(a: Update, b: Update) -> float | None:
    """Cosine over all elements of two updates, accumulated in float64; None if either is zero.

    Raises PastryError if the updates do not have the same architecture, tensors and shapes.
    """
    return cosine_from_dots(*map(sum, zip(*(dots for _, dots in _dots(a, b)), strict=True)))


def cosine_table(a: Update, b: Update) -> dict[str, dict[str, float | None]]:
    """Cosine per layer and module: {"3": {"self_attn.q_proj": 0.1, …}, …, "-": {"embed_tokens": …, "norm": …}}.

    A module's weight and bias count together; layers come in order, tensors outside them under "-" last.
    Raises PastryError if the updates do not have the same architecture, tensors and shapes.
    """
    sums: dict[tuple[str, str], tuple[float, float, float]] = {}
    for name, dots in _dots(a, b):
        key = layer_and_module(name)
        sums[key] = tuple(map(sum, zip(sums.get(key, (0.0, 0.0, 0.0)), dots, strict=True)))
    table: dict[str, dict[str, float | None]] = {}
    for layer, module in sorted(sums, key=lambda key: (key[0] == OUTSIDE_LAYERS, key[0].zfill(6), key[1])):
        table.setdefault(layer, {})[module] = cosine_from_dots(*sums[layer, module])
    return table


def layer_and_module(name: str) -> tuple[str, str]:
    """("3", "self_attn.q_proj") for model.layers.3.self_attn.q_proj.weight, ("-", "norm") for model.norm.weight."""
    name = re.sub(r"\.(weight|bias)$", "", name)
    match = _IN_LAYER.fullmatch(name)
    return (match[1], match[2]) if match else (OUTSIDE_LAYERS, name.removeprefix("model."))


def _dots(a: Update, b: Update) -> Iterator[tuple[str, tuple[float, float, float]]]:
    check_same_architecture(a.weights, b.weights, chat_template=False)
    for name in sorted(a.weights.tensors):
        left, right = a.read(name), b.read(name)
        yield name, (dot(left, right), dot(left, left), dot(right, right))
