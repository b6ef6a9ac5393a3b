"""Start a training job on Ray Train workers, follow it from the driver, start it again when a worker or node dies."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from queue import Empty
from typing import Protocol

import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.util.queue import Queue

from pastry.config import CheckpointSettings, ResourceSettings
from pastry.errors import Interrupted, PastryError
from pastry.training.job import LanguageModelJob, RLJob

POLL_SECONDS = 0.5


class Record(Protocol):
    """Where a training's numbers go: a StageRun of the registry."""

    def log(self, numbers: dict[str, float]) -> None: ...

    def samples(self, step: int, rows: list[dict]) -> None: ...


def run_training(
    job: LanguageModelJob | RLJob,
    resources: ResourceSettings,
    workers: int,
    checkpoints: CheckpointSettings,
    record: Record,
    say: Callable[[str], None],
) -> None:
    """Train on `workers` Ray Train workers until the trained weights are in `job.out`.

    Checkpoints lie in `job.work`; where some are already, training goes on from the last. A worker or node that dies is
    told by `say`, and costs at most what was done since the last checkpoint. Raises Interrupted when `job.stop`
    appears, PastryError or what the workers raised when trying again would not help.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    done, step = threading.Event(), 0

    def tell(message: dict) -> None:
        nonlocal step
        if "resumed" in message:
            say(f"going on after step {message['resumed']}")
        elif "samples" in message:
            record.samples(message["step"], message["samples"])
        else:
            step = int(message["step"])
            record.log(message)

    follower = threading.Thread(target=_follow, args=(job.progress, tell, done), daemon=True)
    follower.start()
    try:
        for left in range(checkpoints.restarts, -1, -1):
            try:
                _trainer(job, resources, workers, checkpoints).fit()
                break
            except ray.train.WorkerGroupError as error:
                reason = _fatal(error)
                if reason:
                    raise reason from None
                if not left:
                    raise PastryError(f"a worker died {checkpoints.restarts + 1} times: {error}") from None
                say(f"a worker died after step {step}; starting again ({left} more times at most)")
    finally:
        done.set()
        follower.join()
    if job.stop.exists() and not any((job.out / trained).exists() for trained in ("model", "adapter")):
        raise Interrupted(f"stopped as asked, after saving a checkpoint to {job.work}; the same command goes on from there")
    shutil.rmtree(job.work / "checkpoints")


def _trainer(
    job: LanguageModelJob | RLJob, resources: ResourceSettings, workers: int, checkpoints: CheckpointSettings
) -> TorchTrainer:
    return TorchTrainer(
        _loop,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": 1} if resources.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            # The same name and place again: Ray Train then finds the checkpoints it registered there.
            name="checkpoints",
            storage_path=str(job.work),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=checkpoints.keep),
            # Not Ray's own retries: they also repeat what fails the same way every time, such as a verifier that raises.
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )


def _loop(job: LanguageModelJob | RLJob) -> None:
    # TRL would import MLflow, for two seconds; the driver is who logs.
    os.environ["DISABLE_MLFLOW_INTEGRATION"] = "TRUE"
    # The workers need torch and TRL; the driver would only wait for their import.
    from pastry.training.loops import language_model_loop, rl_loop

    (rl_loop if isinstance(job, RLJob) else language_model_loop)(job)


def _fatal(error: ray.train.WorkerGroupError) -> Exception | None:
    """The error that would come again; None where a worker or node died, or only lost its connection to one that did."""
    if any("No space left on device" in str(failure) for failure in error.worker_failures.values()):
        return PastryError("no space left on the device of the run's storage; make room, then the same command goes on")
    raised = [failure for failure in error.worker_failures.values() if isinstance(failure, UserExceptionWithTraceback)]
    for failure in raised:
        if isinstance(failure._base_exc, PastryError):
            return failure._base_exc
    if len(raised) < len(error.worker_failures):
        return None
    return next((failure for failure in raised if not _lost_connection(failure._base_exc)), None)


def _lost_connection(cause: BaseException) -> bool:
    message = str(cause)
    return any(sign in message for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))


def _follow(queue: Queue, tell: Callable[[dict], None], done: threading.Event) -> None:
    finished = False
    while not finished:
        finished = done.is_set()  # read before draining: what was sent until then is still in the queue
        try:
            tell(queue.get(timeout=0.01 if finished else POLL_SECONDS))
            finished = False
        except Empty:
            continue
