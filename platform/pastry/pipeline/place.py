"""Where a run's workers would run: what can be seen of it from here."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

from pastry.config import ResourceSettings

SECONDS = 60
"""For a worker of the cluster to answer."""


@dataclass(frozen=True)
class Machine:
    """One of the machines, or one of the GPUs, that workers get."""

    cpus: int
    memory: int
    """Bytes: a GPU's, or without one the main memory."""
    gpu: str | None
    bf16: bool
    vllm: bool
    compiler: bool
    """Whether DeepSpeed can build its CPU optimizer: g++ and ninja."""


@dataclass(frozen=True)
class Place:
    workers: int
    """How many there is room for, an autoscaler's machines included."""
    machine: Machine | None
    """None: there is none at the moment."""
    name: str


def machine(use_gpu: bool) -> Machine:
    """The machine that this process runs on. Raises RuntimeError where there is no GPU and one is wanted."""
    memory, gpu, bf16 = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None, True
    if use_gpu:
        import torch

        facts = torch.cuda.get_device_properties(0)
        memory, gpu, bf16 = facts.total_memory, facts.name, torch.cuda.is_bf16_supported(including_emulation=False)
    vllm = importlib.util.find_spec("vllm") is not None
    return Machine(os.cpu_count() or 1, memory, gpu, bf16, vllm, all(map(shutil.which, ("g++", "ninja"))))


def find_place(resources: ResourceSettings) -> Place | None:
    """The cluster of RAY_ADDRESS, else this machine; None: a GPU is wanted and neither is there."""
    if "RAY_ADDRESS" in os.environ:
        return _cluster(resources)
    if not resources.use_gpu:
        # Ray's CPUs are logical, and `connect` adds two.
        here = machine(False)
        return Place((here.cpus + 2) // resources.cpus_per_worker, here, "this machine")
    import torch

    if not torch.cuda.is_available():
        return None
    return Place(torch.cuda.device_count(), machine(True), "this machine")


def _cluster(resources: ResourceSettings) -> Place:
    import ray
    from ray._private.state import state  # what an autoscaler may add is public nowhere else

    from pastry.pipeline.workers import connect, remote

    connect()
    key, each = ("GPU", 1) if resources.use_gpu else ("CPU", resources.cpus_per_worker)
    now, most = ray.cluster_resources().get(key, 0), (state.get_max_resources_from_cluster_config() or {}).get(key, 0)
    found = None
    if now >= each:
        answer = remote(machine, resources)(resources.use_gpu)
        ready, _ = ray.wait([answer], timeout=SECONDS)
        if ready:
            found = ray.get(answer)
        else:
            ray.cancel(answer)  # all places are taken by other work
    return Place(int(max(now, most) // each), found, f"the cluster at {os.environ['RAY_ADDRESS']}")
