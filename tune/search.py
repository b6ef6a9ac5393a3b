"""The search stage: a Ray Tune sweep over the source of the skill and λ, in memory.

Each Tune worker loads the target and all vectors once; a trial changes λ in place, always from θ_target, and asks the
target's validation questions. No checkpoint is written.
"""

from __future__ import annotations

from typing import Any

import torch
from ray import tune

from pastry.config import GenerationSettings
from pastry.domains import load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.evaluation.score import score
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import skill_directory
from pastry.vectors.files import write_json


class LambdaTrial(tune.Trainable):
    """One (source, λ): a single step that scores the target's validation split."""

    def setup(self, config: dict, *, target, skills, domain, world_seed, subject, generation: GenerationSettings, threads):
        torch.set_num_threads(threads)
        self.engine = TransformersEngine(target, skills)
        self.domain = load_domain(subject, domain, world_seed)
        self.questions = self.domain.questions(1, "validation")
        self.generation = generation
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        # Tune hands the next trial to the same process (reuse_actors): the weights in memory stay.
        self.point = new_config
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> dict:
        return {}  # a trial is one step: there is nothing between its start and its result

    def load_checkpoint(self, checkpoint: dict) -> None:
        pass

    def step(self) -> dict[str, Any]:
        self.engine.attach({self.point["source"]: self.point["lambda"]})
        name = f"{self.point['source']}:{self.point['lambda']}"
        found = score(name, self.engine, self.domain, self.questions, self.generation)
        return {**found.model_dump(exclude={"correct", "modes", "by_facts", "name"}), "done": True}


class _Progress(tune.Callback):
    def __init__(self, run, trials: int):
        self.run, self.trials, self.finished = run, trials, 0

    def __getstate__(self) -> dict:
        return {}  # Tune pickles its callbacks for Tuner.restore; the connection to MLflow stays here

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.finished += 1
        self.run.log({"step": self.finished, "steps": self.trials, "accuracy": trial.last_result["accuracy"]})


def search(context: Context) -> dict[str, Any]:
    """Score every (source, λ) on the validation split; best: the highest accuracy, ties to the λ nearest the paper's 1."""
    settings, resources = context.settings, context.config.resources
    skills = {
        role.removeprefix("skill:"): str(skill_directory(path))
        for role, path in context.inputs.items()
        if role.startswith("skill:")
    }
    wanted = settings["search"]
    lambdas = sorted({0.0, *wanted.lambdas})  # λ = 0 is the target itself: the level to beat
    space = {"source": tune.grid_search(list(skills)), "lambda": tune.grid_search(lambdas)}
    trainable = tune.with_parameters(
        LambdaTrial,
        target=str(context.model("target")),
        skills=skills,
        threads=resources.cpus_per_worker,
        **{key: settings[key] for key in ("domain", "world_seed", "subject", "generation")},
    )
    trial_resources = {"cpu": resources.cpus_per_worker, "gpu": int(resources.use_gpu)}
    tuner = tune.Tuner(
        tune.with_resources(trainable, trial_resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            reuse_actors=True,
            max_concurrent_trials=settings["concurrency"],
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=str(context.out),
            verbose=0,
            callbacks=[_Progress(context.run, len(skills) * len(lambdas))],
            failure_config=tune.FailureConfig(fail_fast=True),
        ),
    )
    results = tuner.fit()
    for result in results:
        if result.error:
            raise result.error
    keys = ("n", "accuracy", "low", "high", "well_formed")
    points = [result.config | {key: result.metrics[key] for key in keys} for result in results]
    points.sort(key=lambda point: (point["source"], point["lambda"]))
    best = max((p for p in points if p["lambda"]), key=lambda p: (p["accuracy"], -abs(p["lambda"] - 1)))
    write_json(context.out / "search.json", {"points": points, "best": best})
    return {"lambda_best": best["lambda"], "source": best["source"], "validation_accuracy": best["accuracy"]}
