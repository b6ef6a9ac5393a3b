"""What a run will take, stage by stage, before anything is spent: tokens, memory, disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pastry.config import PastConfig, RLSettings
from pastry.pipeline.memory import Memory, worker_memory
from pastry.pipeline.model_size import RunModel, run_model
from pastry.pipeline.place import Place, find_place
from pastry.pipeline.sizes import Disk, Work, disk, longest_prompt, work
from pastry.pipeline.stage import Stage


@dataclass(frozen=True)
class StageForecast:
    work: Work | None
    """Of training stages."""
    prompt: int
    """Tokens of RL's longest prompt; 0 elsewhere."""
    memory: Memory | None
    """Of a worker of a training stage; None elsewhere, and where the model's size is unknown."""
    disk: Disk | None
    """None where the model's size is unknown."""


@dataclass(frozen=True)
class Forecast:
    config: PastConfig
    workers: int
    model: RunModel
    place: Place | None
    stages: dict[str, StageForecast]
    free: int
    """Bytes on the storage directory's disk."""
    needed: int | None
    """Bytes the given stages write at most at a time; None where the model's size is unknown."""


def forecast(config: PastConfig, workers: int, stages: list[Stage], storage: Path) -> Forecast:
    """Of the `stages` that are still to be done. Reads headers, settings and the domain's texts, and asks the cluster."""
    model = run_model(config, storage)
    found = {stage.name: _stage(stage, model, config, workers) for stage in stages}
    sizes = [each.disk for each in found.values() if each.disk]
    needed = sum(each.result for each in sizes) + max((each.working for each in sizes), default=0) if model.size else None
    there = next(path for path in [storage, *storage.absolute().parents] if path.is_dir())
    place = find_place(config.resources)
    return Forecast(config, workers, model, place, found, shutil.disk_usage(there).free, needed)


def _stage(stage: Stage, model: RunModel, config: PastConfig, workers: int) -> StageForecast:
    train = stage.settings.get("train")
    prompt = longest_prompt(stage, model) if isinstance(train, RLSettings) else 0
    memory = worker_memory(model.size, train, workers, config.resources.use_gpu, prompt) if train and model.size else None
    return StageForecast(work(stage, model), prompt, memory, disk(stage, model.size, config) if model.size else None)
