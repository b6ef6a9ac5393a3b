"""How two updates of one architecture lie to each other: cosines, whole and per layer and module."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from pastry.vectors import kernels
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import Weights, check_same_architecture
from pastry.vectors.modules import OUTSIDE_LAYERS, layer_and_module
from pastry.vectors.rounding import Scratch, block_ranges
from pastry.vectors.skill import Skill


class Update(Protocol):
    """A change of weights: `block` gives elements `start` to `stop` of one tensor of it in float32."""

    weights: Weights

    def block(self, name: str, start: int, stop: int, scratch: Scratch) -> np.ndarray: ...


class SkillUpdate:
    """A skill vector, as an update."""

    def __init__(self, path: Path):
        self.weights = self._skill = Skill(path)

    def block(self, name: str, start: int, stop: int, scratch: Scratch) -> np.ndarray:
        return self._skill.widened_block(name, start, stop, scratch)[0]


class CheckpointUpdate:
    """end − start of two checkpoints, subtracted in float32 while it is read; the SFT update is one."""

    def __init__(self, end: Path, start: Path):
        self.weights = self._end = Checkpoint(end)
        self._start = Checkpoint(start)
        check_same_architecture(self._end, self._start, chat_template=False)

    def block(self, name: str, start: int, stop: int, scratch: Scratch) -> np.ndarray:
        end, begin = (side.widened_block(name, start, stop, scratch)[0] for side in (self._end, self._start))
        return np.subtract(end, begin, out=scratch((self, "difference"), np.float32, stop - start))


def cosine(a: Update, b: Update) -> float | None:
    """Cosine over all elements of two updates, accumulated in float64; None if either is zero.

    Raises PastryError if the updates do not have the same architecture, tensors and shapes.
    """
    return kernels.cosine_from_dots(*map(sum, zip(*(dots for _, dots in _dots(a, b)), strict=True)))


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
        table.setdefault(layer, {})[module] = kernels.cosine_from_dots(*sums[layer, module])
    return table


def _dots(a: Update, b: Update) -> Iterator[tuple[str, tuple[float, float, float]]]:
    check_same_architecture(a.weights, b.weights, chat_template=False)
    scratch = Scratch()
    for name, info in sorted(a.weights.tensors.items()):
        ranges = block_ranges(info.elements)
        blocks = [kernels.dots(a.block(name, *block, scratch), b.block(name, *block, scratch)) for block in ranges]
        yield name, tuple(math.fsum(block[i] for block in blocks) for i in range(3))
