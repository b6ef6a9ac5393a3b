"""Settings of the source × target matrix, and of what predicts it."""

from __future__ import annotations

import math

from pydantic import ConfigDict, Field, field_validator, model_validator

from pastry.config.strict import Strict


class MatrixSettings(Strict):
    """Every source's skill into every target, and what cheap signals said of it before any RL."""

    model_config = ConfigDict(serialize_by_alias=True)

    targets: list[str] = Field(min_length=1)
    """Domains that only read; a source among them is its own target, too, for reference."""
    lambda_: float = Field(1.0, alias="lambda")
    signals: list[str] = Field(
        min_length=1,
        default=["headroom", "trajectory_length", "planning_depth", "state_richness", "document_similarity", "sft_cosine"],
    )
    """Names in `evaluation/signals.py`."""
    samples: int = Field(16, ge=2)
    """Completions of each of a source's training questions, sampled as RL would."""
    k: int = Field(8, ge=2)
    """Of pass@k, in the signal headroom."""

    @field_validator("lambda_")
    @classmethod
    def _moves(cls, lam: float) -> float:
        if not math.isfinite(lam) or lam == 0:
            raise ValueError("λ must be a finite number other than 0, which injects nothing")
        return lam

    @model_validator(mode="after")
    def _consistent(self):
        if self.k > self.samples:
            raise ValueError(f"k = {self.k} is larger than samples = {self.samples}: pass@k needs at least k completions")
        for key, names in (("targets", self.targets), ("signals", self.signals)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key} repeat: {', '.join(names)}")
        return self
