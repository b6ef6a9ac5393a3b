"""What can be known of a skill's source before any RL is paid for: the base, its SFT models and the domains' texts.

Each signal is one function in `SIGNALS`, found by name; higher values predict a larger gain. Whether they do is another
question, which the measured gains answer (`evaluation/agreement.py`).

Torch, scikit-learn and numba are imported where they are used: a plan names the signals and needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from pastry.domains.base import Domain
from pastry.evaluation.pass_at_k import pass_at_k


class SignalAbsent(Exception):
    """A signal does not apply to a domain; the text says why."""


@dataclass(frozen=True)
class Sampling:
    """How RL would sample a source's answers, and how many of each question are taken."""

    samples: int
    k: int
    temperature: float
    top_p: float
    max_new_tokens: int
    batch: int
    seed: int


@dataclass(frozen=True)
class Attempts:
    """Sampled answers of one question."""

    correct: int
    lengths: list[int]
    """Tokens of each; of a wrong one as many as were allowed: a failure counts as the horizon (arXiv 2601.18217)."""


@dataclass(frozen=True)
class Reader:
    """A domain's part 1, the model that has read its documents, and the base that had not."""

    domain: Domain
    model: Path
    base: Path
    corpus: Sequence[str]
    """The documents of every source and target: over them words are weighted."""
    sampling: Sampling

    @cached_property
    def attempts(self) -> list[Attempts]:
        """Of every training question. Raises SignalAbsent for a domain of episodes."""
        from pastry.engine.transformers_engine import TransformersEngine

        if self.domain.environment() is not None:
            raise SignalAbsent(f"'{self.domain.name}' has an environment, and episodes are not sampled before RL")
        wanted, questions = self.sampling, self.domain.questions(1, "train")
        answers = TransformersEngine(self.model).generate(
            [question.prompt for question in questions for _ in range(wanted.samples)],
            max_new_tokens=wanted.max_new_tokens,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            seed=wanted.seed,
            batch=wanted.batch,
        )
        attempts = []
        for i, question in enumerate(questions):
            own = answers[i * wanted.samples : (i + 1) * wanted.samples]
            correct = [self.domain.verify(question, answer.text, answer.finished).correct for answer in own]
            lengths = [a.tokens if right else wanted.max_new_tokens for a, right in zip(own, correct, strict=True)]
            attempts.append(Attempts(sum(correct), lengths))
        return attempts


def headroom(source: Reader, target: Reader) -> float:
    """pass@k − pass@1 of the source's SFT model on its own training questions, mean over questions (arXiv 2512.07783, edge of
    competence: RL pays on tasks that the model fails at pass@1 but solves at pass@k)."""
    n, k = source.sampling.samples, source.sampling.k
    return fmean(pass_at_k(n, each.correct, k) - pass_at_k(n, each.correct, 1) for each in source.attempts)


def trajectory_length(source: Reader, target: Reader) -> float:
    """Planning complexity as arXiv 2601.18217 measures it: mean length of the source's trajectories before RL, failures counted
    as the horizon. Closed-book, a trajectory is one sampled answer, in tokens, and the horizon rl.max_new_tokens."""
    return fmean(length for each in source.attempts for length in each.lengths)


def planning_depth(source: Reader, target: Reader) -> float:
    """Planning complexity read off the task instead: the mean number of facts a source's question needs."""
    facts = [question.facts for question in source.domain.questions(1, "train")]
    if max(facts) == 1:
        raise SignalAbsent(f"no question of '{source.domain.name}' says that it needs more than one fact")
    return fmean(facts)


def state_richness(source: Reader, target: Reader) -> float:
    """State information richness (arXiv 2601.18217: mean characters of the states met). Closed-book, the prompt holds no state:
    what a policy has to find its way in is what was read, so these are the characters of a source's document."""
    return fmean(map(len, source.domain.documents(1)))


def document_similarity(source: Reader, target: Reader) -> float:
    """Cosine of the two domains' mean TF-IDF vectors (scikit-learn's words and smooth idf, each document of length 1)."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    words = TfidfVectorizer().fit(source.corpus)
    a, b = (np.asarray(words.transform(side.domain.documents(1)).mean(axis=0)) for side in (source, target))
    return float(cosine_similarity(a, b)[0, 0])


def sft_cosine(source: Reader, target: Reader) -> float:
    """Cosine of the two domains' SFT updates θ_sft − θ_base over all weights (PaST, arXiv 2601.11258: orthogonality)."""
    from pastry.vectors.geometry.updates import CheckpointUpdate, cosine

    found = cosine(*(CheckpointUpdate(side.model, side.base) for side in (source, target)))
    if found is None:
        raise SignalAbsent(f"SFT changed no weight of '{source.domain.name}' or of '{target.domain.name}'")
    return found


SIGNALS: dict[str, tuple[Callable[[Reader, Reader], float], str]] = {
    # name: (how it is computed, what a person is told of it)
    "headroom": (headroom, "how many more of its training questions the source's SFT model solves in k tries than in one"),
    "trajectory_length": (trajectory_length, "mean tokens of the source's sampled answers, wrong ones counted as the longest"),
    "planning_depth": (planning_depth, "mean number of facts a question of the source needs"),
    "state_richness": (state_richness, "mean characters of a document of the source"),
    "document_similarity": (document_similarity, "TF-IDF cosine of the source's documents and the target's"),
    "sft_cosine": (sft_cosine, "cosine between what reading changed in the source's model and in the target's"),
}


def measure(names: Sequence[str], source: Reader, targets: Sequence[Reader]) -> dict[str, dict[str, float] | str]:
    """Signal → target's name → value; or → why the source has no such signal."""
    found: dict[str, dict[str, float] | str] = {}
    for name in names:
        function, _ = SIGNALS[name]
        try:
            found[name] = {target.domain.name: function(source, target) for target in targets}
        except SignalAbsent as absent:
            found[name] = str(absent)
    return found
