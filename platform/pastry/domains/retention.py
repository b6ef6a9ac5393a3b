"""Questions about what a base knew before it read anything: injection should not break them."""

from __future__ import annotations

from pathlib import Path

from pastry.config import DomainSettings
from pastry.domains import load_corpus
from pastry.domains.base import PretrainingCorpus, Question
from pastry.domains.files import read_rows
from pastry.errors import PastryError


def retention_questions(domain: DomainSettings, seed: int, file: Path | None) -> list[Question]:
    """Questions about what the base knew before: of a file, else pre-training's own; none where neither is there.

    Raises PastryError for a file that cannot be read.
    """
    if file:
        if domain.kind != "files":
            raise PastryError(f"search.retention_file = {file}: domain.kind is {domain.kind}, which has questions of its own")
        rows = enumerate(read_rows(file, ("question", "answer")), 1)
        return [
            Question(f"retention/{line}", domain.prompt.format(question=row["question"]), row["answer"]) for line, row in rows
        ]
    corpus = load_corpus(domain, seed)
    return corpus.pretraining_questions() if isinstance(corpus, PretrainingCorpus) else []
