"""The sft and rl stages: a Ray Train job each."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pastry.pipeline.stage import Context
from pastry.training.job import LanguageModelJob, RLJob
from pastry.training.launch import run_training
from pastry.vectors.architecture import record_base
from pastry.vectors.checkpoint import Checkpoint, checkpoint_fingerprint
from pastry.vectors.lora.merge import merge_adapter


def train(context: Context, job: Callable[..., LanguageModelJob | RLJob], *, at: Path | None = None, **changed: Any) -> None:
    """Run `job`, completed from the stage's settings (`changed` ones replaced), into the stage's directories or into `at`."""
    settings, config = context.settings | changed, context.config
    # The driver's node: another one's death must not take the queue with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    made = job(
        domain_settings=settings["domain"],
        world_seed=settings["world_seed"],
        seed=settings["seed"],
        threads=config.resources.cpus_per_worker,
        settings=settings["train"],
        out=at or context.out,
        work=at or context.work,
        stop=context.stop,
        base=context.model("base") if "base" in context.inputs else None,
        checkpoint_every=config.checkpoints.every,
        geometry_every=config.tracking.geometry_every,
        samples_every=config.tracking.samples_every,
        watch_nodes="RAY_ADDRESS" in os.environ,
        progress=queue,
    )
    run_training(made, config.resources, settings["workers"], config.checkpoints, context.run, context.say)
    queue.shutdown()
    if made.settings.lora:
        merge_adapter(Path(made.start), made.out / "adapter", made.out / "model")


def sft(context: Context) -> dict[str, Any]:
    """Document SFT (or SFT on short answers) from the input's weights."""
    settings, start = context.settings, Checkpoint(context.model("start"))
    job = partial(LanguageModelJob, texts=settings["texts"], domain=settings["subject"], part=settings["part"])
    train(context, partial(job, start=str(start.path)))
    record_base(context.out / "model", start.architecture.base or checkpoint_fingerprint(start.path))
    return {"fingerprint": checkpoint_fingerprint(context.out / "model")}


def rl(context: Context) -> dict[str, Any]:
    """GRPO on the subject's questions; keeps the weights it started from beside those it ended with."""
    settings, start = context.settings, Checkpoint(context.model("start"))
    job = partial(RLJob, domain=settings["subject"], part=settings["part"], start=str(start.path))
    train(context, job)
    if settings["train"].lora:
        (context.out / "start").symlink_to(os.path.relpath(start.path, context.out))  # an adapter leaves it as it is
    else:
        os.rename(context.work / "start", context.out / "start")
    if base := start.architecture.base:
        for weights in ("start", "model"):
            record_base(context.out / weights, base)
    kept, given = checkpoint_fingerprint(context.out / "start"), checkpoint_fingerprint(start.path)
    metrics = {"fingerprint": checkpoint_fingerprint(context.out / "model"), "start_fingerprint": kept}
    if kept != given:  # true of 16-bit inputs only: RL's own float32 step 0 is then the one that counts
        metrics["start_differs_from_input"] = given
    return metrics
