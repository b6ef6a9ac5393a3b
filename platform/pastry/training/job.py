"""A training stage as data: everything a worker needs, sent by Ray to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ray.util.queue import Queue

from pastry.config import DomainSettings, ModelShape, RLSettings, TextSettings
from pastry.domains.base import Split


@dataclass(frozen=True, kw_only=True)
class _Job:
    domain_settings: DomainSettings
    world_seed: int
    seed: int
    threads: int
    progress: Queue
    """Receives a dict of numbers at every log step."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelJob(_Job):
    """Pre-training (`texts="pretraining"`), document SFT ("documents") or SFT on short answers ("answers")."""

    settings: TextSettings
    texts: Literal["pretraining", "documents", "answers"]
    start: str | None = None
    """Checkpoint to start from …"""
    shape: ModelShape | None = None
    tokenizer: str | None = None
    """… or the shape and tokenizer of a new model."""
    domain: str | None = None
    part: int = 1


@dataclass(frozen=True, kw_only=True)
class RLJob(_Job):
    settings: RLSettings
    start: str
    domain: str
    part: int = 1
    split: Split | None = None
