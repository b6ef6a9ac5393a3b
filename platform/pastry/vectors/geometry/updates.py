"""How two updates of one architecture lie to each other: cosines, whole and per layer and module, and what chance gives.

What a cosine has to differ from: turn the signs of one update's elements at random, each by itself, and keep all
magnitudes. The cosine then has mean 0 and the standard deviation √(Σ a_i²b_i²) / (‖a‖‖b‖), exactly. It is a sum of
independent terms, so about 95 % of it lies within 1.96 of these where no few elements dominate, and at least 95 % within
2.72 whatever the elements (Hoeffding: Probability inequalities for sums of bounded random variables, JASA 58, 1963).

Two random directions in n dimensions have 1/√n, and so has, up to the means, permuting one update's elements. But an update
moves some elements far more than others, and two updates mostly the same ones: chance cosines are then larger than that,
which the signs keep account of. They do not account for dependence between elements (singular directions that all updates
share), so a cosine outside says that the signs agree, not why; and among 10⁹ elements it may be outside and tiny.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numba import njit

from pastry.vectors import kernels
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import Weights, check_same_architecture
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.modules import OUTSIDE_LAYERS, layer_and_module
from pastry.vectors.rounding import Scratch, block_ranges
from pastry.vectors.shards import Progress

BAND = 1.96
"""Standard deviations either side that hold 95 % of a normal distribution."""
Cell = TypeVar("Cell")
ByModule = dict[str, dict[str, Cell]]
"""Layer → module → something; layers in order, tensors outside them under "-" last."""


class Update(Protocol):
    """A change of weights: `block` gives elements `start` to `stop` of one tensor of it in float32."""

    weights: Weights

    def block(self, name: str, start: int, stop: int, scratch: Scratch) -> np.ndarray: ...


class SkillUpdate:
    """A skill vector, as an update."""

    def __init__(self, path: Path):
        self.weights = self._skill = open_skill(path)

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


@dataclass(frozen=True)
class Comparison:
    """Sums over the elements of two updates a and b, and what follows from them."""

    elements: int = 0
    ab: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    aabb: float = 0.0
    """Σ a_i²b_i²."""

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def cosine(self) -> float | None:
        """None if either update is zero."""
        return kernels.cosine_from_dots(self.ab, self.aa, self.bb)

    @property
    def sign_sd(self) -> float | None:
        """Standard deviation of the cosine under random signs; None if either update is zero."""
        if self.aa == 0 or self.bb == 0:
            return None
        return math.sqrt(self.aabb) / (math.sqrt(self.aa) * math.sqrt(self.bb))

    @property
    def random_sd(self) -> float | None:
        """Standard deviation of the cosine of two random directions, 1/√n."""
        return 1 / math.sqrt(self.elements) if self.elements else None

    @property
    def z(self) -> float | None:
        """The cosine in standard deviations under random signs; None if no element is moved by both."""
        return self.ab / math.sqrt(self.aabb) if self.aabb > 0 else None

    @property
    def outside(self) -> bool:
        """Whether the cosine lies outside the 95 % that random signs give (more than BAND standard deviations)."""
        return self.z is not None and abs(self.z) > BAND

    def document(self) -> dict[str, float | int | bool | None]:
        """What `pastry vector compare --json` says of it."""
        facts = {key: getattr(self, key) for key in ("elements", "cosine", "z", "outside", "sign_sd", "random_sd")}
        return facts | {"norm_a": math.sqrt(self.aa), "norm_b": math.sqrt(self.bb)}


def compare(a: Update, b: Update, progress: Progress | None = None) -> ByModule[Comparison]:
    """Both updates per layer and module, read once, block by block; sums in float64.

    A module's weight and bias count together. `progress` is told how many elements of how many are done.
    Raises PastryError if the updates do not have the same architecture, tensors and shapes, and for NaN or Inf.
    """
    rows: dict[tuple[str, str], Comparison] = {}
    for name, sums in _tensors(a, b, progress):
        key = layer_and_module(name)
        rows[key] = rows.get(key, Comparison()) + sums
    return by_module(rows)


def whole(table: ByModule[Comparison]) -> Comparison:
    """All elements together."""
    return sum((cell for row in table.values() for cell in row.values()), Comparison())


def cosine(a: Update, b: Update) -> float | None:
    """Cosine over all elements of two updates; None if either is zero. Raises what `compare` raises."""
    return whole(compare(a, b)).cosine


def cosine_table(a: Update, b: Update) -> ByModule[float | None]:
    """Cosine per layer and module: {"3": {"self_attn.q_proj": 0.1, …}, …, "-": {"embed_tokens": …, "norm": …}}.

    Raises what `compare` raises.
    """
    return {layer: {module: cell.cosine for module, cell in row.items()} for layer, row in compare(a, b).items()}


def by_module(rows: Mapping[tuple[str, str], Cell]) -> ByModule[Cell]:
    """(layer, module) → cell as a nested table: layers ordered as numbers, modules by name."""
    table: ByModule[Cell] = {}
    for layer, module in sorted(rows, key=lambda key: (key[0] == OUTSIDE_LAYERS, key[0].zfill(6), key[1])):
        table.setdefault(layer, {})[module] = rows[layer, module]
    return table


def _tensors(a: Update, b: Update, progress: Progress | None) -> Iterator[tuple[str, Comparison]]:
    check_same_architecture(a.weights, b.weights, chat_template=False)
    scratch = Scratch()
    done, total = 0, sum(info.elements for info in a.weights.tensors.values())
    for name, info in sorted(a.weights.tensors.items()):
        blocks = []
        for block in block_ranges(info.elements):
            blocks.append(_moments(a.block(name, *block, scratch), b.block(name, *block, scratch)))
            done += block[1] - block[0]
            if progress:
                progress(done, total)
        yield name, Comparison(info.elements, *(math.fsum(sums[i] for sums in blocks) for i in range(4)))


# As in kernels: only the order of the float64 sums may change.
@njit(nogil=True, cache=True, fastmath={"reassoc"})
def _moments(a, b):
    """Σ ab, Σ a², Σ b², Σ a²b² of two float32[n]; the products are exact, and Σ a²b² cannot overflow or underflow."""
    ab, aa, bb, aabb = 0.0, 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        xy = x * y
        ab += xy
        aa += x * x
        bb += y * y
        aabb += xy * xy
    return ab, aa, bb, aabb
