"""Settings of the domains: one group a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pastry.config.strict import Strict


class LabSettings(Strict):
    """The lab's world and its mixtures (`domains/lab`)."""

    kind: Literal["lab"]
    entities: int = Field(24, ge=4)
    """Entities in a group."""
    parts: int = Field(2, ge=1)
    """Disjoint parts of each domain: the most rounds a source can feed."""
    recall_share: float = Field(0.25, ge=0, le=1)
    """Share of pre-training answers that recite before answering."""
    documents_per_entity: int = Field(4, ge=1)
    """Documents about each entity in an epoch; every one is written anew."""
    one_off: int = Field(1000, ge=0)
    """One-off recitations in a pre-training epoch."""
    replayed_documents: int = Field(48, ge=0)
    replayed_questions: int = Field(96, ge=0)
    """What document SFT replays of pre-training in an epoch."""


class FilesSubject(Strict):
    documents: Path
    """JSON lines: {"id", "text"}."""
    questions: Path
    """JSON lines: {"document", "question", "answer"}; "document" is the id of the one that holds the answer."""
    derived: Path | None = None
    """JSON lines: {"document", "text"}: texts derived from the documents (implications, tasks, questions and answers), on which
    `sft.second` trains."""


class FilesSettings(Strict):
    """One's own documents and questions (`domains/files`)."""

    kind: Literal["files"]
    subjects: dict[str, FilesSubject]
    corpora: dict[str, Path] = {}
    """Kinds of texts for `midtrain.mixture`: name → JSON lines {"text"}; a subject's documents file is such a file, too."""
    parts: int = Field(1, ge=1)
    prompt: str = "Question: {question}\nAnswer:"
    prefix: str = " Let me recall what I have read."
    """The prompting baseline appends this to the prompt."""
    validation_share: float = Field(0.33, gt=0, lt=1)


DomainSettings = Annotated[LabSettings | FilesSettings, Field(discriminator="kind")]
