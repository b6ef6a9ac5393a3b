"""Several training jobs one after the other in one group of Ray Train workers, whose start costs more than the jobs.

python -m tests.training.group OUT    OUT/jobs.pickle says what; writes OUT/curves.json: name → log points, and the nodes
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch.distributed

from pastry.config import LabSettings, RLSettings, TextSettings
from pastry.training.job import LanguageModelJob, RLJob

ROOT = Path(__file__).resolve().parents[2]
LAB = LabSettings(kind="lab", entities=6, one_off=20, replayed_documents=4, replayed_questions=8)
SEED = 3
TEXT = {"batch_rows": 12, "row_tokens": 64, "lr": 1e-3, "log_every": 1, "steps": 4}
# An untrained model is never right, but sometimes well-formed: that gives rewards to tell completions apart.
RL = {"steps": 3, "questions_per_step": 6, "group_size": 4, "max_new_tokens": 12, "lr": 1e-3, "rewards": {"well_formed": 1.0}}


def sft_job(out: Path, start: Path, **settings) -> LanguageModelJob:
    text = TextSettings(**TEXT | settings)
    return LanguageModelJob(settings=text, texts="documents", domain="planet", start=str(start), **_common(out))


def rl_job(out: Path, start: Path, **settings) -> RLJob:
    return RLJob(settings=RLSettings(**RL | settings), domain="planet", start=str(start), **_common(out))


def _common(out: Path) -> dict:
    return {
        "domain_settings": LAB,
        "world_seed": SEED,
        "seed": 5,
        "threads": 1,
        "out": out,
        "work": out / "work",
        "stop": out / "work" / "stop",
        "base": None,
        "checkpoint_every": None,
        "geometry_every": 1,
        "samples_every": 100,
        "watch_nodes": False,
        "progress": None,
    }


def run_group(out: Path, jobs: dict[str, LanguageModelJob | RLJob], workers: int, environment: dict[str, str]) -> dict:
    """Log points by job, and under "nodes" the ids of the nodes that had workers."""
    out.mkdir()
    (out / "jobs.pickle").write_bytes(pickle.dumps((jobs, workers)))
    command = [sys.executable, "-m", "tests.training.group", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads((out / "curves.json").read_text())


def _loop(jobs: dict) -> None:
    import ray

    from pastry.training.loops import language_model_loop, rl_loop

    for name, job in jobs.items():
        # transformers leaves it behind for later trainers of the process; Pastry's workers train once.
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        job.progress.put({"job": name, "node": ray.get_runtime_context().get_node_id()})
        (rl_loop if isinstance(job, RLJob) else language_model_loop)(job)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # nobody starts from weights that are still being written


def main(out: Path) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    from pastry.pipeline.workers import connect

    connect()
    jobs, workers = pickle.loads((out / "jobs.pickle").read_bytes())
    queue = Queue(actor_options={"num_cpus": 0})
    scaling = ray.train.ScalingConfig(
        num_workers=workers, resources_per_worker={"CPU": 1}, placement_strategy="SPREAD" if workers > 1 else "PACK"
    )
    TorchTrainer(
        _loop,
        train_loop_config={name: replace(job, progress=queue) for name, job in jobs.items()},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(name="ray_train", storage_path=str(out)),
    ).fit()
    curves, nodes, current = defaultdict(list), set(), None
    while not queue.empty():
        point = queue.get()
        if "job" in point:
            current = point["job"]
            nodes.add(point["node"])
        elif "samples" not in point:
            curves[current].append(point)
    (out / "curves.json").write_text(json.dumps(curves | {"nodes": sorted(nodes)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
