"""What every domain offers: documents to read, questions to answer, a verifier that scores the answers."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pastry.errors import PastryError

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


class ToolError(Exception):
    """A tool of an environment raises it to tell the model that its call was wrong; its text is what the model reads.

    Any other exception of an environment is the environment's own failure.
    """


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
    def derived_epoch(self, part: int, rng: random.Random) -> list[Text]:
        """One epoch of the second SFT stage: texts derived from a part's documents, and whatever is replayed beside them.

        Raises PastryError if the domain has none.
        """

    @abstractmethod
    def answers_epoch(self, part: int, rng: random.Random) -> list[Text]:
        """One epoch of a part's training questions with their short answers: the SFT-on-QA control."""

    @abstractmethod
    def questions(self, part: int, split: Split | None = None) -> list[Question]:
        """A part's questions: of one split, or all of them. Splits never share the entity or document asked about."""

    @abstractmethod
    def verify(self, question: Question, completion: str, finished: bool) -> Verdict:
        """Score one completion. `finished`: the model ended the sequence itself, it was not cut off."""

    def environment(self) -> Callable[[], object] | None:
        """Of a domain of multi-turn episodes: makes an environment, as TRL's `environment_factory` does. None: single-turn.

        An environment has `reset(**row) -> str | None` (row: `question`, a Question's fields, and `prompt`; what it returns
        is appended to the prompt), public methods that are the model's tools (type hints, a docstring in Google's style;
        not async), and may have `get_reward() -> float`. One serves many episodes, one after another.
        """
        return None

    @abstractmethod
    def prompted(self, question: Question) -> tuple[str, str]:
        """The prompting baseline: (prompt with its forced prefix, the prefix that belongs to the completion)."""

    @abstractmethod
    def data_digest(self, part: int, derived: bool = False) -> str:
        """Digest of what a part would train on, for the skill vector's manifest.

        `derived`: the second SFT stage's texts are part of it; raises PastryError if there are none.
        """


class Corpus(ABC):
    """Texts by kind, for mid-training to mix."""

    kinds: tuple[str, ...]

    @abstractmethod
    def texts_of(self, kind: str, rng: random.Random) -> list[Text]:
        """Every text of one of the `kinds`, once; at least one."""

    def mixture_epoch(self, mixture: dict[str, float], rng: random.Random) -> list[Text]:
        """As many texts as the mixture's kinds have together, each one's kind drawn by the shares.

        No text of a kind comes twice before all have come once. Raises PastryError for an unknown kind.
        """
        pools = self._pools(mixture, rng)
        size = sum(len(pool) for pool in pools.values())
        counts = Counter(rng.choices(list(pools), [mixture[kind] for kind in pools], k=size))
        epoch = []
        for kind, pool in pools.items():
            passes, rest = divmod(counts[kind], len(pool))
            epoch += passes * pool + rng.sample(pool, rest)
        rng.shuffle(epoch)
        return epoch

    def data_digest(self, kinds: Iterable[str]) -> str:
        """Digest of the texts of some kinds. Raises PastryError for an unknown kind."""
        content = repr(self._pools(kinds, random.Random(0))).encode()
        return "sha256:" + hashlib.sha256(content).hexdigest()

    def _pools(self, kinds: Iterable[str], rng: random.Random) -> dict[str, list[Text]]:
        # Sorted, since a stage's identity knows no order of keys.
        for kind in sorted(kinds):
            if kind not in self.kinds:
                known = ", ".join(self.kinds) or "none, for domain.corpora names no file"
                raise PastryError(f"midtrain.mixture: no kind of text '{kind}'; there are: {known}")
        return {kind: self.texts_of(kind, rng) for kind in sorted(kinds)}


class PretrainingCorpus(Corpus):
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
