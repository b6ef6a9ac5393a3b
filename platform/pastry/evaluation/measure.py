"""A model with skills attached, measured: right answers, what it still knows from before, perplexity of documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import BaseModel

from pastry.config import GenerationSettings, ResourceSettings
from pastry.domains import load_domain
from pastry.domains.base import Question
from pastry.engine.transformers_engine import TransformersEngine
from pastry.errors import PastryError
from pastry.evaluation.statistics import wilson
from pastry.vectors.modules import Lambda

LARGEST_LOSS = 700.0
"""Nats per token: e to the power of more is infinite."""


class Measurement(BaseModel):
    """What was found of each item, in the order in which they were asked: parts add up, and comparisons are paired."""

    correct: list[bool] = []
    well_formed: list[bool] = []
    retained: list[bool] = []
    """Right answers to the retention questions."""
    losses: list[tuple[float, int]] = []
    """Of each document: summed negative log-likelihood, tokens."""

    def __add__(self, other: Measurement) -> Measurement:
        return Measurement(**{key: getattr(self, key) + getattr(other, key) for key in Measurement.model_fields})

    def first(self, items: Items) -> Measurement:
        """What was found of the first so many of each."""
        questions, retention, documents = map(len, (items.questions, items.retention, items.documents))
        return Measurement(
            correct=self.correct[:questions],
            well_formed=self.well_formed[:questions],
            retained=self.retained[:retention],
            losses=self.losses[:documents],
        )

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log-likelihood per token; None without documents."""
        total, tokens = sum(loss for loss, _ in self.losses), sum(tokens for _, tokens in self.losses)
        return math.exp(total / tokens) if tokens else None

    def document(self) -> dict[str, Any]:
        """Accuracies with n and their 95 % interval, and perplexity."""
        return proportion(self.correct) | {
            "well_formed": sum(self.well_formed) / len(self.well_formed),
            "perplexity": self.perplexity,
            "retention": proportion(self.retained) if self.retained else None,
        }


def proportion(correct: Sequence[bool]) -> dict[str, Any]:
    """n, accuracy and its 95 % Wilson interval."""
    low, high = wilson(correct)
    return {"n": len(correct), "accuracy": sum(correct) / len(correct), "low": low, "high": high}


@dataclass(frozen=True)
class Items:
    """What is asked and read."""

    questions: Sequence[Question]
    retention: Sequence[Question] = ()
    documents: Sequence[str] = ()

    def part(self, start: float, stop: float) -> Items:
        """From one share to another of each kind; parts that meet leave nothing out."""
        return Items(*(kind[round(start * len(kind)) : round(stop * len(kind))] for kind in self._kinds))

    @property
    def _kinds(self) -> tuple[Sequence[Any], ...]:
        return self.questions, self.retention, self.documents


@dataclass(frozen=True)
class Bench:
    """All that an evaluator is made from, in any process."""

    target: Path
    vectors: Mapping[str, Path]
    settings: Mapping[str, Any]
    """domain, world_seed, subject and generation of the stage."""
    threads: int


class Evaluator:
    """Target and vectors in memory; λ changes in place, always from θ_target."""

    def __init__(self, bench: Bench):
        torch.set_num_threads(bench.threads)
        self.engine = TransformersEngine(bench.target, bench.vectors)
        self.domain = load_domain(bench.settings["subject"], bench.settings["domain"], bench.settings["world_seed"])
        self.generation: GenerationSettings = bench.settings["generation"]

    def measure(self, lambdas: Mapping[str, Lambda], items: Items) -> Measurement:
        """Greedy answers and perplexity with the vectors attached. All questions go through the model together."""
        self.engine.attach(lambdas)
        asked = [*items.questions, *items.retention]
        answers = self.engine.generate(
            [question.prompt for question in asked],
            max_new_tokens=self.generation.max_new_tokens,
            batch=self.generation.batch,
        )
        verdicts = [
            self.domain.verify(question, answer.text, answer.finished) for question, answer in zip(asked, answers, strict=True)
        ]
        losses = self.engine.losses(items.documents)
        if not all(loss <= LARGEST_LOSS * tokens for loss, tokens in losses):  # nor if it is not a number
            raise PastryError("the model's perplexity is beyond all numbers: λ is too large")
        own, retained = verdicts[: len(items.questions)], verdicts[len(items.questions) :]
        return Measurement(
            correct=[verdict.correct for verdict in own],
            well_formed=[verdict.well_formed for verdict in own],
            retained=[verdict.correct for verdict in retained],
            losses=losses,
        )


Job = tuple[Mapping[str, Lambda], Items]


def measure_jobs(bench: Bench, jobs: Sequence[Job], resources: ResourceSettings, workers: int) -> Iterator[Measurement]:
    """Measure every job in Ray tasks, each of which holds the model in memory and does a share of the jobs, in order."""
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=int(resources.use_gpu))(_measure)
    shares = [jobs[start::workers] for start in range(min(workers, len(jobs)))]
    found = ray.get([task.remote(bench, share) for share in shares])
    return (found[index % len(shares)][index // len(shares)] for index in range(len(jobs)))


def measure_split(bench: Bench, job: Job, resources: ResourceSettings, workers: int) -> Measurement:
    """One job, its items shared out to Ray tasks."""
    lambdas, items = job
    parts = [(lambdas, items.part(k / workers, (k + 1) / workers)) for k in range(workers)]
    return sum(measure_jobs(bench, parts, resources, workers), Measurement())


def _measure(bench: Bench, jobs: Sequence[Job]) -> list[Measurement]:
    evaluator = Evaluator(bench)
    return [evaluator.measure(*job) for job in jobs]
