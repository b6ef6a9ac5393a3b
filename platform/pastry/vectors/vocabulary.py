"""A skill vector for a target whose vocabulary is another one: the rows of the tokens that both have, and no other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.files import read_json
from pastry.vectors.rounding import Scratch
from pastry.vectors.skill import TOKENIZER_FILE, Skill

_FACTS = ("vocab_size", "vocabulary_digest", "special_tokens_digest")


@dataclass(frozen=True)
class SharedRows:
    """Counts of rows of the target's embeddings."""

    shared: int
    """Get the skill's λ·v: the token is in both vocabularies."""
    moved: int
    """Of those, the ones whose token has another id in the skill's vocabulary."""
    untouched: int
    """Stay as they are: the skill does not know the token."""
    dropped: int
    """Rows of the skill that the target has no token for."""


class IntersectedSkill:
    """A skill whose embedding rows are the target's, by token; rows of unknown tokens are zero. Reads like a Skill."""

    def __init__(self, skill: Skill, target: Checkpoint):
        """Raises PastryError without a tokenizer.json on either side, and if anything but the number of rows differs."""
        self.path, self.manifest = skill.path, skill.manifest
        self._skill = skill
        self._rows: dict[str, np.ndarray] = {}
        self.tensors = dict(skill.tensors)
        vocabularies = [_token_ids(side) for side in (target.path, skill.path)]
        for name, info in skill.tensors.items():
            # By name, not by shape: rows may be as many and yet stand for other tokens.
            if name in target.tensors and name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")):
                rows = target.tensors[name].shape[0]
                self._rows[name] = _source_rows(*vocabularies, rows, info.shape[0])
                self.tensors[name] = replace(info, shape=(rows, *info.shape[1:]))
                # Rows are read in the target's order, so the blocks' digests cannot be checked on the way.
                skill.check_digest(name, skill.block_digests(name))
        if not self._rows:
            raise PastryError(f"{skill.path}: --vocab intersect found no embeddings; leave the option out")
        wanted = target.architecture
        self.architecture: Architecture = skill.architecture.model_copy(update={fact: getattr(wanted, fact) for fact in _FACTS})

    @property
    def shared(self) -> SharedRows:
        """Of the first embedding; the others have the same tokens."""
        name, rows = next(iter(self._rows.items()))
        known = rows >= 0
        moved = int((rows[known] != np.flatnonzero(known)).sum())
        dropped = self._skill.tensors[name].shape[0] - int(known.sum())
        return SharedRows(int(known.sum()), moved, int((~known).sum()), dropped)

    def widened_block(self, name: str, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """As Skill's: elements `start` to `stop` of the tensor in the target's shape, float32."""
        if name not in self._rows:
            return self._skill.widened_block(name, start, stop, scratch)
        width = self.tensors[name].elements // self.tensors[name].shape[0]
        values = scratch((self, "values"), np.float32, stop - start)
        values.fill(0)
        for row in range(start // width, -(-stop // width)):
            source = int(self._rows[name][row])
            if source >= 0:
                first, last = max(start, row * width), min(stop, (row + 1) * width)
                offset = (source - row) * width
                part, _ = self._skill.widened_block(name, first + offset, last + offset, scratch)
                values[first - start : last - start] = part
        return values, values

    def check_digest(self, name: str, blocks: list[bytes]) -> None:
        """As Skill's; the embeddings were checked when this was opened."""
        if name not in self._rows:
            self._skill.check_digest(name, blocks)


def _token_ids(directory: Path) -> dict[str, int]:
    path = directory / TOKENIZER_FILE
    if not path.exists():
        raise PastryError(f"{path}: no such file, and --vocab intersect needs to know which row is which token; put it there")
    document = read_json(path)
    try:
        ids = dict(document["model"]["vocab"])
        ids |= {token["content"]: token["id"] for token in document.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError) as error:
        raise PastryError(f"{path}: found no model.vocab of token → id, or malformed added_tokens ({error!r})") from error
    if not all(type(number) is int and number >= 0 for number in ids.values()):
        raise PastryError(f"{path}: model.vocab holds an id that is not a natural number; restore the file from its source")
    return ids


def _source_rows(target_ids: dict[str, int], skill_ids: dict[str, int], rows: int, skill_rows: int) -> np.ndarray:
    """int64[rows]: the skill's row of the same token, −1 where there is none."""
    sources = np.full(rows, -1, np.int64)
    for token, row in target_ids.items():
        source = skill_ids.get(token, -1)
        if row < rows and 0 <= source < skill_rows:
            sources[row] = source
    return sources
