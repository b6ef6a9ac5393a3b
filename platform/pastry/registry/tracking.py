"""MLflow runs: one for a Pastry run, one inside it for each stage."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from pastry.config import Tracking

BATCH = 1000
"""Metrics in one request: MLflow's own limit."""


def tracking_uri(tracking: Tracking, storage: Path) -> str:
    """Where MLflow's data goes: the setting, else MLFLOW_TRACKING_URI, else an SQLite file in the storage directory."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute()}/mlflow.db"


class Tracker:
    """A Pastry run in MLflow. Starting it again finds the run it left."""

    def __init__(self, tracking: Tracking, storage: Path, name: str, tags: dict[str, str]):
        self.uri = tracking_uri(tracking, storage)
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self.client.get_experiment_by_name(tracking.experiment)
        if experiment:
            self.experiment_id = experiment.experiment_id
        else:
            # Local artifacts stay beside the database, wherever the process was started.
            location = (storage.absolute() / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
            self.experiment_id = self.client.create_experiment(tracking.experiment, artifact_location=location)
        found = self.client.search_runs([self.experiment_id], f"tags.`pastry.run` = '{name}'", max_results=1)
        self.run_id = found[0].info.run_id if found else self._create(name, {"pastry.run": name}).info.run_id
        for key, value in tags.items():
            self.client.set_tag(self.run_id, key, value)
        self.client.update_run(self.run_id, status="RUNNING")
        for left in self.client.search_runs(
            [self.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        ):
            self.client.set_terminated(left.info.run_id, "KILLED")  # by a kill -9 of the process that ran it

    def _create(self, name: str, tags: dict[str, str]):
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags | {MLFLOW_RUN_NAME: name})

    def stage(self, name: str, kind: str, parameters: dict[str, str], watcher: Callable[[dict[str, float]], None]) -> StageRun:
        """Start a stage's own run inside this one; `watcher` sees every logged point."""
        run = self._create(name, {MLFLOW_PARENT_RUN_ID: self.run_id, "pastry.stage": name, "pastry.kind": kind})
        params = [Param(key, str(value)[:6000]) for key, value in parameters.items()]
        self.client.log_batch(run.info.run_id, params=params)
        return StageRun(self, run.info.run_id, watcher)

    def finish(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """End the whole run: its headline numbers and its documents."""
        self.log(self.run_id, metrics)
        for artifact in artifacts:
            self.client.log_artifact(self.run_id, str(artifact))
        self.client.set_terminated(self.run_id, RunStatus.to_string(RunStatus.FINISHED))

    def log(self, run_id: str, metrics: dict[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        now = int(time.time() * 1000)
        entries = [Metric(key.replace(":", "/"), float(value), now, step) for key, value in metrics.items()]
        for start in range(0, len(entries), BATCH):
            self.client.log_batch(run_id, metrics=entries[start : start + BATCH])


class StageRun:
    """One stage in MLflow, its training curves, and whoever watches them."""

    def __init__(self, tracker: Tracker, run_id: str, watcher: Callable[[dict[str, float]], None]):
        self.tracker, self.run_id, self.watcher = tracker, run_id, watcher
        self.curves: list[dict[str, float]] = []

    def log(self, numbers: dict[str, float]) -> None:
        """One point of the training curves; `step` is its place."""
        self.curves.append(numbers)
        self.watcher(numbers)
        values = {key: value for key, value in numbers.items() if key not in ("step", "steps")}
        self.tracker.log(self.run_id, values, step=int(numbers["step"]))

    def keep(self, document: Path) -> None:
        """Store a small file with the run."""
        self.tracker.client.log_artifact(self.run_id, str(document))

    def end(self, metrics: dict[str, float], tags: dict[str, str], status: str) -> None:
        """Close the run with the stage's final numbers."""
        self.tracker.log(self.run_id, metrics)
        self.tracker.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.tracker.client.set_terminated(self.run_id, status)
