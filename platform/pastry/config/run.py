"""Settings of a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pastry.config.domains import DomainSettings
from pastry.config.matrix import MatrixSettings
from pastry.config.search import AblationSettings, SearchSettings
from pastry.config.strict import Strict
from pastry.config.training import MidtrainSettings, PretrainSettings, RLSettings, SFTSettings


class GenerationSettings(Strict):
    """Greedy generation when answers are scored."""

    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(256, gt=0)


class ResourceSettings(Strict):
    workers: int | Literal["auto"] = "auto"
    """Ray Train workers of a training stage; auto: the cluster's CPUs (or GPUs), at most 8, that share every batch equally."""
    cpus_per_worker: int = Field(1, gt=0)
    """Also the threads of a worker."""
    use_gpu: bool = False


class CheckpointSettings(Strict):
    """Of training while it runs: what a killed worker, node or driver costs at most. No part of a stage's identity."""

    every: int | None = Field(200, gt=0)
    """Optimizer steps from one to the next; null: none, a killed stage starts over."""
    keep: int = Field(2, gt=0)
    """How many there are at a time; all go when their stage is done."""
    restarts: int = Field(3, ge=0)
    """How often Ray starts a stage's workers again from the last checkpoint after one has died."""


class Tracking(Strict):
    geometry_every: int = Field(10, gt=0)
    """Optimizer steps from one measurement of the update's norm and cosine to the next; every weight is gathered for it."""
    samples_every: int = Field(10, gt=0)
    """RL steps from one table of sample completions to the next."""
    uri: str | None = None
    """MLflow tracking and registry; null: MLFLOW_TRACKING_URI, and without it an SQLite file in the storage directory."""
    experiment: str = "pastry"


Comparison = Literal["past_1_round", "pre_injection", "rl_on_target", "prompted", "control_random", "control_sft_on_qa"]


class PastConfig(Strict):
    """A whole PaST run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = 0
    storage: Path = Path("runs")
    """Where runs lie; shared by all nodes."""
    base: str | None = None
    """A checkpoint directory, a Hugging Face name or a models:/ URI …"""
    pretrain: PretrainSettings | None = None
    """… or a base made from scratch."""
    domain: DomainSettings
    sources: list[str] = Field(min_length=1)
    target: str
    rounds: int = Field(1, ge=1)
    midtrain: MidtrainSettings | None = None
    """Further pre-training of the base on another mixture, before anything else."""
    sft: SFTSettings
    rl: RLSettings
    search: SearchSettings = SearchSettings()
    ablation: AblationSettings | None = None
    """null: none."""
    matrix: MatrixSettings | None = None
    """Every source into further targets, and what predicts it before RL; null: not asked."""
    compare: list[Comparison] = ["prompted", "control_random"]
    """Rows of the result table beside base, target_sft, past@1 and past@best; the default ones need no training."""
    control_sft_steps: int = Field(100, gt=0)
    """Steps of the control_sft_on_qa vector: plain SFT on the source's questions and short answers."""
    generation: GenerationSettings = GenerationSettings()
    resources: ResourceSettings = ResourceSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self):
        if (self.base is None) == (self.pretrain is None):
            raise ValueError("give either base (a checkpoint) or pretrain (make one from scratch)")
        if self.target in self.sources:
            raise ValueError(f"target '{self.target}' is also a source: a skill is transferred to another domain")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources repeat: {self.sources}")
        if self.rounds > self.domain.parts:
            raise ValueError(f"rounds = {self.rounds} but the domain has parts = {self.domain.parts}: each round needs its own")
        if "past_1_round" in self.compare and self.rounds == 1:
            raise ValueError("compare: past_1_round needs rounds of at least 2")
        named = [*self.sources, self.target, *(self.matrix.targets if self.matrix else [])]
        if self.pretrain and self.pretrain.gate.probe in named:
            raise ValueError(f"pretrain.gate.probe '{self.pretrain.gate.probe}' must be neither source nor target (of matrix)")
        return self
