"""The sweep itself: Ray Tune's search algorithm, scheduler and trials over a space; it goes on after a crash."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from pastry.config import ResourceSettings
from pastry.pipeline.space import LINEAR, Space
from pastry_tune.trial import SkillTrial, Sweep

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # MLflow has the trials; files in three formats would cost time
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the search says them itself
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search at once; the same command goes on
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # what is restored after a crash; ten seconds are many trials
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
NAME = "ray_tune"


class Draw:
    """Optuna's definition of a space by running it: draws one point. Not a closure, since Tune pickles it."""

    def __init__(self, space: Space):
        self.space = space

    def __call__(self, trial: optuna.Trial) -> dict[str, Any] | None:
        candidates = {candidate.name: candidate for candidate in self.space.candidates}
        chosen = candidates[trial.suggest_categorical("source", list(candidates))]
        for key in [f"lambda/{group}" for group in self.space.lambda_keys] or ["lambda"]:
            self._lambda(trial, key)
        if chosen.method == LINEAR:
            for index, _ in enumerate(chosen.of):
                trial.suggest_float(f"weights/{index}", 0.01, 1.0)

    def _lambda(self, trial: optuna.Trial, key: str) -> None:
        wanted = self.space.settings.lambdas
        if isinstance(wanted, list):
            trial.suggest_categorical(key, wanted)
        else:
            trial.suggest_float(key, wanted.low, wanted.high, log=wanted.log)

    def first(self) -> list[dict[str, Any]]:
        """Every candidate at the λ nearest to the paper's 1, with weights alike, as Optuna's parameters."""
        keys = [f"lambda/{group}" for group in self.space.lambda_keys] or ["lambda"]
        points = []
        for candidate in self.space.candidates:
            weights = [f"weights/{index}" for index, _ in enumerate(candidate.of)] if candidate.method == LINEAR else []
            points.append({"source": candidate.name} | dict.fromkeys(keys, self.space.nearest) | dict.fromkeys(weights, 1.0))
        return points


class Follower(tune.Callback):
    """Hands every trial that ends to `listen`. Tune pickles its callbacks for `Tuner.restore`; whoever listens belongs to the
    process, so the class holds it."""

    listen: Callable[[dict, dict | None], None]
    """Gets a trial's config and its last result; None: it failed."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info) -> None:
        type(self).listen(trial.config, trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info) -> None:
        type(self).listen(trial.config, None)


def run_trials(
    space: Space, sweep: Sweep, seed: int, resources: ResourceSettings, concurrency: int, work: Path, listen: Callable
) -> tune.ResultGrid:
    """Every trial of the space, those of an earlier attempt in the directory `work` included.

    Finished trials are not repeated; failed ones get another try. `listen`: see Follower.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the search says what failed
    Follower.listen = staticmethod(listen)
    trainable = tune.with_resources(
        tune.with_parameters(SkillTrial, sweep=sweep),
        {"cpu": resources.cpus_per_worker, "gpu": int(resources.use_gpu)},
    )
    before = work / NAME
    if any(before.glob("experiment_state-*.json")) and tune.Tuner.can_restore(str(before)):
        return tune.Tuner.restore(str(before), trainable, restart_errored=True).fit()
    grid = space.method == "grid"
    return tune.Tuner(
        trainable,
        param_space=_grid(space) if grid else None,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="max",
            search_alg=None if grid else _optuna(space, seed),
            scheduler=_asha(space, sweep.subsets),
            num_samples=1 if grid else space.trials,
            max_concurrent_trials=concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name=NAME, storage_path=str(work), verbose=0, callbacks=[Follower()]),
    ).fit()


def reason(error: Exception) -> str:
    """What went wrong in a trial, in a line: the message at the end of Ray's traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix("pastry.errors.PastryError: ")


def _grid(space: Space) -> dict[str, Any]:
    values = tune.grid_search(space.settings.lambdas)
    lambdas = {group: values for group in space.lambda_keys} or values
    return {"source": tune.grid_search([candidate.name for candidate in space.candidates]), "lambda": lambdas}


def _optuna(space: Space, seed: int) -> OptunaSearch:
    """Every candidate is tried once first, in order; from then on by TPE, or at random."""
    draw = Draw(space)
    sampler = {"optuna": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}[space.method](seed=seed)
    return OptunaSearch(draw, metric="objective", mode="max", sampler=sampler, points_to_evaluate=draw.first())


def _asha(space: Space, subsets: list[int]) -> ASHAScheduler | None:
    if len(subsets) == 1:
        return None
    stopping = space.early_stopping
    return ASHAScheduler(time_attr="n", max_t=subsets[-1], grace_period=subsets[0], reduction_factor=stopping.factor)
