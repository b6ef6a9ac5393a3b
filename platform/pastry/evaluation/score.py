"""Ask a model a domain's questions and break its answers down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel

from pastry.config import GenerationSettings
from pastry.domains.base import Domain, Question
from pastry.engine.transformers_engine import TransformersEngine
from pastry.evaluation.statistics import wilson


class Score(BaseModel):
    """One row of a result table: the accuracy with its 95 % Wilson interval, and what stands behind it."""

    name: str
    n: int
    accuracy: float
    low: float
    high: float
    well_formed: float
    """Share of completions in the form the verifier wants, right or wrong."""
    lenient: float
    """Share that contains the expected answer anywhere."""
    modes: dict[str, float]
    """Share of each way of answering."""
    by_facts: dict[int, float]
    """Accuracy of the questions that need so many facts."""
    correct: list[bool]
    """Per question, in the questions' order: comparisons are paired on it."""


def score(
    name: str,
    engine: TransformersEngine,
    domain: Domain,
    questions: Sequence[Question],
    settings: GenerationSettings,
    prompted: bool = False,
) -> Score:
    """Greedy answers to closed-book questions, verified. `prompted`: with the domain's forced prefix."""
    prompts, prefixes = [q.prompt for q in questions], [""] * len(questions)
    if prompted:
        prompts, prefixes = zip(*map(domain.prompted, questions), strict=True)
    answers = engine.generate(prompts, max_new_tokens=settings.max_new_tokens, batch=settings.batch)
    verdicts = [
        domain.verify(question, prefix + answer.text, answer.finished)
        for question, prefix, answer in zip(questions, prefixes, answers, strict=True)
    ]
    n = len(verdicts)
    correct = [verdict.correct for verdict in verdicts]
    modes = Counter(verdict.mode for verdict in verdicts)
    facts = sorted({question.facts for question in questions})
    low, high = wilson(correct)
    return Score(
        name=name,
        n=n,
        accuracy=sum(correct) / n,
        low=low,
        high=high,
        well_formed=sum(verdict.well_formed for verdict in verdicts) / n,
        lenient=sum(verdict.lenient for verdict in verdicts) / n,
        modes={mode: modes[mode] / n for mode in domain.modes},
        by_facts={k: _mean([c for c, q in zip(correct, questions, strict=True) if q.facts == k]) for k in facts},
        correct=correct,
    )


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values)
