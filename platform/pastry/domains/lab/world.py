"""The lab's synthetic world: six domains of made-up entities with facts, generated from a seed.

Nothing is shared between the domains but grammar words. Entities of pre-training, of every part of every domain and of
the probe are disjoint, so that a question about a new entity can only be answered from the documents read about it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

SUBJECTS = {
    # entity type: (relation to another entity of its group, four attributes, who says so)
    "planet": ("neighbor", ("mineral", "climate", "discoverer", "color"), "astronomers"),
    "company": ("rival", ("product", "city", "founder", "logo"), "analysts"),
    "person": ("teacher", ("hobby", "accent", "pet", "talent"), "neighbours"),
    "ship": ("sister", ("cargo", "harbor", "captain", "flag"), "sailors"),
    "drug": ("antidote", ("dose", "plant", "taste", "organ"), "doctors"),
    "castle": ("twin", ("stone", "ghost", "builder", "valley"), "historians"),
}
GRAMMAR = [
    "<q>",
    "<a>",
    ".",
    "?",
    ":",
    "the",
    "of",
    "is",
    "has",
    "say",
    "a",
    "what",
    "answer",
    "there",
    "called",
    "this",
    "text",
    "about",
]
VALUES_PER_ATTRIBUTE = 16
NAME_PARTS = 128
PRETRAINING = 0
"""The part of every domain that pre-training reads; parts 1, 2, … are the rounds'."""
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True)
class Entity:
    """A named thing with five facts: its relation to another entity of its group, and four attributes."""

    name: str
    subject: str
    facts: tuple[tuple[str, str], ...]
    """(relation or attribute, value): the relation first; its value is another entity's name."""
    related: int
    """Index within the group of the entity the relation names."""


class World:
    """Every entity of one seed.

    Args:
        seed: the world's own seed; two seeds share vocabulary size and grammar, nothing else of substance.
        entities: entities in a group (a group = one part of one domain).
        parts: parts of each domain beside the pre-training part.
    """

    def __init__(self, seed: int, entities: int, parts: int):
        rng = random.Random(f"lab-world-{seed}")
        syllables = ["".join(s) for s in product(CONSONANTS, VOWELS, CONSONANTS)]
        rng.shuffle(syllables)
        self.first = [s.capitalize() for s in syllables[:NAME_PARTS]]
        self.last = ["-" + s for s in syllables[NAME_PARTS : 2 * NAME_PARTS]]
        words = ["".join(s) for s in product(CONSONANTS, VOWELS, CONSONANTS, VOWELS, CONSONANTS)]
        words = iter(rng.sample(words, len(SUBJECTS) * 4 * VALUES_PER_ATTRIBUTE))
        self.values = {
            attribute: [next(words) for _ in range(VALUES_PER_ATTRIBUTE)]
            for _, attributes, _ in SUBJECTS.values()
            for attribute in attributes
        }
        names = [f"{a} {b}" for a, b in product(self.first, self.last)]
        rng.shuffle(names)
        self._names = iter(names)
        self.groups = {
            (subject, part): self._group(subject, entities, rng) for part in range(parts + 1) for subject in SUBJECTS
        }
        self.unused_names = list(self._names)
        """Names of no entity: pre-training's one-off recitations use them."""

    def _group(self, subject: str, size: int, rng: random.Random) -> list[Entity]:
        relation, attributes, _ = SUBJECTS[subject]
        names = [next(self._names) for _ in range(size)]
        entities = []
        for index, name in enumerate(names):
            related = rng.choice([other for other in range(size) if other != index])
            facts = [(relation, names[related])] + [(a, rng.choice(self.values[a])) for a in attributes]
            entities.append(Entity(name, subject, tuple(facts), related))
        return entities

    def vocabulary(self) -> list[str]:
        """Every word of the world, in a fixed order."""
        words = list(GRAMMAR)
        for subject, (relation, attributes, speakers) in SUBJECTS.items():
            words += [subject, relation, *attributes, speakers]
        words += self.first + self.last
        for values in self.values.values():
            words += values
        return words
