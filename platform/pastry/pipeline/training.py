"""The sft and rl stages: a Ray Train job each."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.util.queue import Queue

from pastry.config import PastConfig
from pastry.pipeline.stage import Context
from pastry.training.job import LanguageModelJob, RLJob
from pastry.training.launch import run_training
from pastry.vectors.architecture import record_base
from pastry.vectors.checkpoint import Checkpoint, checkpoint_fingerprint


def job_settings(settings: dict[str, Any], config: PastConfig) -> dict[str, Any]:
    """What every training job needs, out of a stage's settings."""
    return {
        "domain_settings": settings["domain"],
        "world_seed": settings["world_seed"],
        "seed": settings["seed"],
        "threads": config.resources.cpus_per_worker,
        "settings": settings["train"],
        "progress": Queue(actor_options={"num_cpus": 0}),
    }


def sft(context: Context) -> dict[str, Any]:
    """Document SFT (or SFT on short answers) from the input's weights."""
    settings = context.settings
    job = partial(LanguageModelJob, texts=settings["texts"], domain=settings["subject"], part=settings["part"])
    metrics = _train(context, job)
    start = Checkpoint(context.model("start"))
    record_base(context.out / "model", start.architecture.base or checkpoint_fingerprint(start.path))
    return metrics


def rl(context: Context) -> dict[str, Any]:
    """GRPO on the subject's questions; keeps the weights it started from beside those it ended with."""
    settings = context.settings
    metrics = _train(context, partial(RLJob, domain=settings["subject"], part=settings["part"]))
    base = Checkpoint(context.model("start")).architecture.base
    for weights in ("start", "model"):
        if base:
            record_base(context.out / weights, base)
    kept, given = checkpoint_fingerprint(context.out / "start"), checkpoint_fingerprint(context.model("start"))
    metrics["start_fingerprint"] = kept
    if kept != given:  # true of 16-bit inputs only: RL's own float32 step 0 is then the one that counts
        metrics["start_differs_from_input"] = given
    return metrics


def _train(context: Context, job) -> dict[str, Any]:
    made = job(start=str(context.model("start")), **job_settings(context.settings, context.config))
    run_training(made, context.config.resources, context.settings["workers"], context.out, context.run.log)
    return {"fingerprint": checkpoint_fingerprint(context.out / "model")}
