"""Start a training job on Ray Train workers and follow it from the driver."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty

import ray.train
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from pastry.config import ResourceSettings
from pastry.training.job import LanguageModelJob, RLJob
from pastry.training.loops import language_model_loop, rl_loop

POLL_SECONDS = 0.5


def run_training(
    job: LanguageModelJob | RLJob,
    resources: ResourceSettings,
    workers: int,
    out: Path,
    on_progress: Callable[[dict], None],
) -> None:
    """Train on `workers` Ray Train workers; the final checkpoint's directories (`model/`, …) appear in `out`.

    Raises what Ray Train raises when a worker fails (TrainingFailedError).
    """
    loop = rl_loop if isinstance(job, RLJob) else language_model_loop
    trainer = TorchTrainer(
        loop,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": 1} if resources.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(name="ray_train", storage_path=str(out)),
    )
    done = threading.Event()
    follower = threading.Thread(target=_follow, args=(job.progress, on_progress, done), daemon=True)
    follower.start()
    try:
        checkpoint = Path(trainer.fit().checkpoint.path)
    finally:
        done.set()
        follower.join()
    for directory in checkpoint.iterdir():
        if directory.is_dir():
            shutil.move(directory, out / directory.name)
    shutil.rmtree(out / "ray_train")


def _follow(queue: Queue, on_progress: Callable[[dict], None], done: threading.Event) -> None:
    finished = False
    while not finished:
        finished = done.is_set()  # read before draining: what was sent until then is still in the queue
        try:
            on_progress(queue.get(timeout=0.01 if finished else POLL_SECONDS))
            finished = False
        except Empty:
            continue
