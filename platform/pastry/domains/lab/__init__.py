"""The lab: synthetic worlds in which Parametric Skill Transfer can be seen whole on two CPU cores.

A tiny model knows two ways to answer a closed-book question: *direct* (`answer : V`) and *recall* (recite the facts,
then answer). After reading documents about new entities only recall works for questions of two facts. RL on a source
domain discovers it; the skill vector carries it to a target domain.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from pastry.config import LabSettings
from pastry.domains.base import Domain, PretrainingCorpus, Question, Split, Text, Verdict
from pastry.domains.lab import texts
from pastry.domains.lab.tokenizer import save_tokenizer
from pastry.domains.lab.world import PRETRAINING, SUBJECTS, World
from pastry.errors import PastryError


@lru_cache(maxsize=4)
def _world(seed: int, entities: int, parts: int) -> World:
    return World(seed, entities, parts)


class _Lab:
    def __init__(self, settings: LabSettings, seed: int):
        self.settings = settings
        self.world = _world(seed, settings.entities, settings.parts)

    def _documents(self, part: int, subjects: Iterable[str], copies: int, rng: random.Random) -> list[Text]:
        entities = [entity for subject in subjects for entity in self.world.groups[subject, part]]
        return [texts.document(entity, rng) for entity in entities for _ in range(copies)]

    def _pretraining_asked(self) -> list[tuple[Question, str]]:
        return [qa for subject in SUBJECTS for qa in texts.questions(self.world.groups[subject, PRETRAINING], subject)]

    def _pretraining_answers(self, rng: random.Random) -> list[Text]:
        share = self.settings.recall_share
        return [texts.answered(q, recited, rng.random() < share) for q, recited in self._pretraining_asked()]


class LabCorpus(_Lab, PretrainingCorpus):
    """Pre-training: documents and questions of all six domains, and one-off recitations.

    Mid-training mixes the same by kind: documents, questions answered direct or by recall, one-off recitations.
    """

    def __init__(self, settings: LabSettings, seed: int):
        super().__init__(settings, seed)
        self.kinds = ("documents", "direct", "recall") + (("one_off",) if settings.one_off else ())

    def texts_of(self, kind: str, rng: random.Random) -> list[Text]:
        if kind == "documents":
            return self._documents(PRETRAINING, SUBJECTS, self.settings.documents_per_entity, rng)
        if kind == "one_off":
            return [texts.one_off(self.world, rng) for _ in range(self.settings.one_off)]
        return [texts.answered(q, recited, kind == "recall") for q, recited in self._pretraining_asked()]

    def pretraining_epoch(self, rng: random.Random) -> list[Text]:
        epoch = self.texts_of("documents", rng) + self._pretraining_answers(rng) + self.texts_of("one_off", rng)
        rng.shuffle(epoch)
        return epoch

    def pretraining_questions(self) -> list[Question]:
        return [question for question, _ in self._pretraining_asked()]

    def save_tokenizer(self, directory: Path) -> None:
        save_tokenizer(self.world.vocabulary(), directory)


class LabDomain(_Lab, Domain):
    """One of the lab's six domains."""

    modes = ("recall", "direct", "other")

    def __init__(self, name: str, settings: LabSettings, seed: int):
        if name not in SUBJECTS:
            raise PastryError(f"the lab has no domain '{name}': choose one of {', '.join(SUBJECTS)}")
        super().__init__(settings, seed)
        self.name, self.parts = name, settings.parts

    def documents(self, part: int) -> list[str]:
        written = self._documents(part, [self.name], 1, random.Random(f"{self.name}/{part}"))
        return [text for document in written for text, _ in document.segments]

    def sft_epoch(self, part: int, rng: random.Random) -> list[Text]:
        return self._with_replay(self._documents(part, [self.name], self.settings.documents_per_entity, rng), rng)

    def derived_epoch(self, part: int, rng: random.Random) -> list[Text]:
        """The documents' facts one by one. No question, and nothing that takes two facts: that is left to the skill."""
        group = self.world.groups[self.name, part]
        return self._with_replay([text for entity in group for text in texts.statements(entity, rng)], rng)

    def _with_replay(self, epoch: list[Text], rng: random.Random) -> list[Text]:
        epoch += rng.sample(self._documents(PRETRAINING, SUBJECTS, 1, rng), self.settings.replayed_documents)
        epoch += rng.sample(self._pretraining_answers(rng), self.settings.replayed_questions)
        rng.shuffle(epoch)
        return epoch

    def answers_epoch(self, part: int, rng: random.Random) -> list[Text]:
        asked = texts.questions(self.world.groups[self.name, part], self.name)
        epoch = [texts.answered(q, recited, recall=False) for q, recited in asked]
        rng.shuffle(epoch)
        return epoch

    def questions(self, part: int, split: Split | None = None) -> list[Question]:
        group = self.world.groups[self.name, part]
        asked = [q for q, _ in texts.questions(group, f"{self.name}/{part}")]
        # A third of the entities asks for validation, the rest for the test: no entity in both.
        border = len(asked) // len(group) * (len(group) // 3)
        return {None: asked, "train": asked, "validation": asked[:border], "test": asked[border:]}[split]

    def verify(self, question: Question, completion: str, finished: bool) -> Verdict:
        """Exact match: one "answer :", exactly the value after it, and the end of the sequence."""
        completion = completion.strip()
        head, marker, value = completion.partition("answer :")
        well_formed = finished and completion.count("answer") == 1 and bool(marker) and bool(value.strip())
        if not head.strip():
            mode = "direct"
        else:
            mode = "recall" if re.fullmatch(r"(the \w+ of \S+ \S+ is \S+( \S+)? \. )+", head) else "other"
        return Verdict(
            correct=well_formed and value.strip() == question.answer,
            well_formed=well_formed,
            mode=mode,
            lenient=question.answer in completion,
        )

    def prompted(self, question: Question) -> tuple[str, str]:
        """Recall forced by its first word."""
        return f"{question.prompt} the", "the "

    def data_digest(self, part: int, derived: bool = False) -> str:
        """Every text follows from the facts, the derived ones too."""
        facts = repr(self.world.groups[self.name, part]).encode()
        return "sha256:" + hashlib.sha256(facts).hexdigest()
