"""What every domain offers: documents to read, questions to answer, a verifier that scores the answers."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Text:
    """One training sequence, as segments of text with a flag each: does the loss count the segment's tokens?

    The segments are joined by the domain's own separators (they are concatenated as they are), so a domain decides
    where its tokens begin.
    """

    segments: tuple[tuple[str, bool], ...]

    @classmethod
    def plain(cls, text: str) -> Text:
        """A text of which every token counts."""
        return cls(((text, True),))


@dataclass(frozen=True)
class Question:
    """One closed-book question: the prompt the model sees, and the answer only the verifier sees."""

    id: str
    prompt: str
    answer: str
    facts: int = 1
    """How many facts of the documents the answer needs."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's breakdown of one completion."""

    correct: bool
    well_formed: bool
    mode: str
    """The way the model answered, in the domain's own words (the lab: "direct", "recall" or "other")."""
    lenient: bool
    """The expected answer occurs anywhere in the completion."""


class Domain(ABC):
    """Documents + tasks + verifier, playing *source* or *target*.

    A domain is cut into disjoint parts 1, 2, …: part k feeds round k of iterative refinement (PaST, arXiv 2601.11258,
    Iterative Skill Refinement) when the domain is a source; a target reads part 1.
    """

    name: str
    parts: int
    """How many disjoint parts there are."""
    modes: tuple[str, ...]
    """Every value `Verdict.mode` takes, the one the skill consists of first."""

    @abstractmethod
    def documents(self, part: int) -> list[str]:
        """A part's documents as plain text, always the same: what perplexity is measured on."""

    @abstractmethod
    def sft_epoch(self, part: int, rng: random.Random) -> list[Text]:
        """One epoch of document fine-tuning on a part: its documents and whatever is replayed beside them."""

    @abstractmethod
    def answers_epoch(self, part: int, rng: random.Random) -> list[Text]:
        """One epoch of a part's training questions with their short answers: the SFT-on-QA control."""

    @abstractmethod
    def questions(self, part: int, split: Split | None = None) -> list[Question]:
        """A part's questions: of one split, or all of them. Splits never share the entity or document asked about."""

    @abstractmethod
    def verify(self, question: Question, completion: str, finished: bool) -> Verdict:
        """Score one completion. `finished`: the model ended the sequence itself, it was not cut off."""

    @abstractmethod
    def prompted(self, question: Question) -> tuple[str, str]:
        """The prompting baseline: (prompt with its forced prefix, the prefix that belongs to the completion)."""

    @abstractmethod
    def data_digest(self, part: int) -> str:
        """Digest of what a part would train on, for the skill vector's manifest."""


class PretrainingCorpus(ABC):
    """What a base is pre-trained on when Pastry makes it from scratch."""

    @abstractmethod
    def pretraining_epoch(self, rng: random.Random) -> list[Text]:
        """One epoch of pre-training texts."""

    @abstractmethod
    def pretraining_questions(self) -> list[Question]:
        """Questions whose answers were in the pre-training texts: the gate asks them."""

    @abstractmethod
    def save_tokenizer(self, directory: Path) -> None:
        """Write a tokenizer that `AutoTokenizer.from_pretrained(directory)` loads."""
