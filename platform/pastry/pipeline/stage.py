"""A stage: one resumable step of a run, known by the digest of its settings and inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from pastry.config import PastConfig
    from pastry.registry.tracking import StageRun

KINDS = {
    # kind: the function that runs it. Named, not imported: reading a plan needs neither torch nor Ray,
    # and the library does not depend on the applications beside it (tune/).
    "base": "pastry.pipeline.bases:base",
    "pretrain": "pastry.pipeline.bases:pretrain",
    "gate": "pastry.pipeline.bases:gate",
    "midtrain": "pastry.pipeline.bases:midtrain",
    "sft": "pastry.pipeline.training:sft",
    "rl": "pastry.pipeline.training:rl",
    "extract": "pastry.pipeline.vectors:extract",
    "inject": "pastry.pipeline.vectors:inject",
    "search": "pastry_tune.search:search",
    "ablation": "pastry.pipeline.ablation:ablation",
    "signals": "pastry.pipeline.matrix:signals",
    "matrix": "pastry.pipeline.matrix:matrix",
    "evaluate": "pastry.pipeline.evaluation:evaluate",
    "register": "pastry.pipeline.registration:register",
    "report": "pastry.pipeline.reporting:report",
}
TRAINING = ("pretrain", "midtrain", "sft", "rl")
"""Kinds that train a model, with curves and checkpoints."""
MARKER = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One step of a plan.

    `settings` holds pydantic models and plain values; `inputs` maps a role to the name of an earlier stage.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def digest(self, input_digests: dict[str, str]) -> str:
        """Identity: the settings and, through their own digests, everything the inputs were made from."""
        document = {"kind": self.kind, "settings": self.settings, "inputs": input_digests}
        text = json.dumps(document, sort_keys=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()

    def function(self) -> Callable[[Context], dict[str, Any]]:
        """The function that runs this kind of stage; it returns the stage's metrics."""
        module, name = KINDS[self.kind].split(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Context:
    """What a stage's function gets."""

    stage: Stage
    config: PastConfig
    inputs: dict[str, Path]
    """Role → the input stage's directory."""
    out: Path
    """Where to write; it becomes the stage's directory once everything is done."""
    work: Path
    """What a kill must not take: it stays until the stage is done."""
    run: StageRun
    """Where to log: MLflow and the console."""
    say: Callable[[str], None]
    """Tells the user something while the stage runs."""

    @property
    def stop(self) -> Path:
        """The file that appears when the stage is asked to save and stop."""
        return self.work / "stop"

    @property
    def settings(self) -> dict[str, Any]:
        return self.stage.settings

    def model(self, role: str) -> Path:
        """The checkpoint an input stage made."""
        return self.inputs[role] / "model"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} cannot be part of a stage's settings")
