"""Ray: connecting, counting what the cluster has, and running a function on a worker."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from pastry.config import ResourceSettings
from pastry.vectors.shards import Spread

MOST_WORKERS = 8
"""Of `workers: auto`: beyond it the batches of small models are too thin; name a number for more."""
RAY_SETTINGS = {
    # Ray Train polls its workers; two seconds a stage add up when stages are short.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # Tune's newer output prints its tables at every verbosity, 0 too.
    "RAY_AIR_NEW_OUTPUT": "0",
}
WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # The driver logs to MLflow; without this every worker would spend a second importing it.
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
}


def connect() -> None:
    """Join the cluster of RAY_ADDRESS (a Ray job has it), or start one on this machine."""
    for key, value in RAY_SETTINGS.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        # Ray's CPUs are logical: the slots beside the real cores are for Tune's and Serve's own small actors.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes one's own machine away
        options = {"num_cpus": (os.cpu_count() or 1) + 2, "object_store_memory": 256 * 2**20, "include_dashboard": False}
    # Tells of token authentication at every start, whatever the logging level given to ray.init.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        **options,
        log_to_driver=False,  # the workers' chatter stays in Ray's log files; progress is shown by Pastry
        logging_level=logging.WARNING,
        runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ignore_reinit_error=True,
    )


def most_workers(resources: ResourceSettings) -> int:
    """Workers that the machine or the cluster has places for, at most 8. Needs no connection on one machine."""
    if "RAY_ADDRESS" in os.environ or resources.use_gpu:
        connect()
        total = ray.cluster_resources().get("GPU" if resources.use_gpu else "CPU", 1)
    else:
        total = len(os.sched_getaffinity(0))
    per_worker = 1 if resources.use_gpu else resources.cpus_per_worker
    return max(1, min(MOST_WORKERS, int(total // per_worker)))


def remote(function: Callable, resources: ResourceSettings) -> Callable:
    """The function as a Ray task with a worker's resources: `remote(f, resources)(*args)` gives an object reference."""
    return ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=int(resources.use_gpu))(function).remote


def spread(workers: int) -> Spread:
    """`map` over Ray tasks, `workers` of them at a time: for shards of vectors and checkpoints on a shared file system.

    A PastryError of a task is raised here as itself.
    """

    def over_tasks(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        connect()
        # Ray takes plain functions only, and `function` may be a partial one.
        task = ray.remote(num_cpus=1)(lambda item: function(item))
        waiting = [task.remote(item) for item in items[:workers]]
        for started in range(len(items)):
            try:
                result = ray.get(waiting[started])
            except ray.exceptions.RayTaskError as error:
                for reference in waiting[started:]:
                    ray.cancel(reference)
                raise error.cause from None
            waiting += [task.remote(item) for item in items[len(waiting) : len(waiting) + 1]]
            yield result

    return over_tasks
