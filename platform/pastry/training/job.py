"""A training stage as data: everything a worker needs, sent by Ray to each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.util.queue import Queue

from pastry.config import DomainSettings, ModelShape, RLSettings, TextSettings
from pastry.domains import Texts


@dataclass(frozen=True, kw_only=True)
class _Job:
    domain_settings: DomainSettings
    world_seed: int
    seed: int
    threads: int
    out: Path
    """Shared storage: the trained model appears here as `model/` (an adapter as `adapter/`)."""
    work: Path
    """Shared storage that outlives a kill: what a restart needs."""
    base: Path | None
    """The model SFT started from: the update in training is compared with the way from there to `start`."""
    stop: Path
    """The file whose existence asks the workers to save and stop."""
    checkpoint_every: int | None
    geometry_every: int
    samples_every: int
    watch_nodes: bool
    """On a cluster: save before a node is pre-empted."""
    progress: Queue
    """Receives a dict of numbers at every log step."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelJob(_Job):
    """Next-token training on `texts`."""

    settings: TextSettings
    texts: Texts
    start: str | None = None
    """Checkpoint to start from …"""
    shape: ModelShape | None = None
    tokenizer: str | None = None
    """… or the shape and tokenizer of a new model."""
    domain: str | None = None
    part: int = 1
    mixture: dict[str, float] | None = None
    """Of mid-training: kind of text → share."""


@dataclass(frozen=True, kw_only=True)
class RLJob(_Job):
    settings: RLSettings
    start: str
    domain: str
    part: int = 1
