"""What the outbox's records mean in MLflow. Each may be delivered twice: the second time changes nothing."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID

from pastry.errors import PastryError
from pastry.registry.client import explain
from pastry.registry.outbox import Record

METRICS = 1000
"""In one request: MLflow's own limit …"""
PARAMS = 100
"""… and of parameters, or tags."""
TABLES = 80
"""Tables of a run that MLflow's page lists as such: their names must fit into one tag. Older ones stay artifacts."""
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
RETRIED = {401, 403, 404, 408, 429}
"""Of the client errors (4xx) of an artifact store or a proxy: what somebody may put right while the run goes on."""

TRIAL = "pastry.trial"
"""Tag of a search's trial: its id within the stage."""
RunTagPair = tuple[str, str]
"""Key and value of the tag by which a run is found: MLflow gives a run its id, which an outbox cannot wait for."""


def allowed_name(name: str) -> str:
    """MLflow allows letters, digits, _ - . space and / in a name that is a path: `clip:high` becomes `clip/high`."""
    return posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", name.replace(":", "/"))).lstrip("/")[:250]


class Delivery:
    """A tracking server and one experiment in it."""

    def __init__(self, client: MlflowClient, experiment: str, artifacts: str | None, folder: Path):
        self.client, self.experiment, self.artifacts, self.folder = client, experiment, artifacts, folder
        self.ids: dict[RunTagPair, str] = {}
        """MLflow's ids of the runs that are known to be there."""

    @cached_property
    def experiment_id(self) -> str:
        """Of the experiment, which is made if need be. Raises PastryError if somebody deleted it."""
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return self.client.create_experiment(self.experiment, artifact_location=self.artifacts)
        if found.lifecycle_stage != "active":
            raise PastryError(
                f"MLflow at {self.client.tracking_uri}: experiment '{self.experiment}' is deleted; set tracking.experiment, "
                f"or restore it: mlflow experiments restore -x {found.experiment_id}"
            )
        return found.experiment_id

    def deliver(self, records: list[Record]) -> None:
        """Raises whatever MLflow does; see `refuses`."""
        for (do, run), group in groupby(records, key=lambda record: (record["do"], tuple(record["run"]))):
            if do == "metrics":
                self._metrics(run, list(group))
            else:
                for record in group:
                    getattr(self, f"_{do}")(run, record)

    def refuses(self, error: Exception) -> bool:
        """True of what MLflow will never take, such as a name it does not allow; else it is worth trying again."""
        if isinstance(error, requests.HTTPError):
            return 400 <= error.response.status_code < 500 and error.response.status_code not in RETRIED
        return isinstance(error, MlflowException) and error.error_code in REFUSALS

    def explain(self, error: Exception) -> str:
        """`MLflow at URI does not answer`, or the error it answers with."""
        return explain(error, self.client.tracking_uri)

    def _found(self, filters: str) -> list[Run]:
        return self.client.search_runs([self.experiment_id], filters)

    def _id(self, run: RunTagPair) -> str:
        if run not in self.ids:
            found = self._found(f"tags.`{run[0]}` = '{run[1]}'")
            if not found:
                raise MlflowException(f"no run tagged {run[0]} = {run[1]}", error_code=RESOURCE_DOES_NOT_EXIST)
            self.ids[run] = found[0].info.run_id
        return self.ids[run]

    def _create(self, run: RunTagPair, record: Record) -> None:
        """A run that is there goes on."""
        found = self._found(f"tags.`{run[0]}` = '{run[1]}'")
        if found:
            self.client.update_run(found[0].info.run_id, status="RUNNING")
            self.ids[run] = found[0].info.run_id
            return
        parent = {MLFLOW_PARENT_RUN_ID: self._id(tuple(record["parent"]))} if record["parent"] else {}
        tags = record["tags"] | parent | {run[0]: run[1]}
        self.ids[run] = self._start(record["time"], tags, record["name"])

    def _sweep(self, run: RunTagPair, record: Record) -> None:
        """Stages of a run that a kill -9 left RUNNING."""
        for left in self._found(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._id(run)}' and attributes.status = 'RUNNING'"):
            self.client.set_terminated(left.info.run_id, "KILLED", record["time"])

    def _metrics(self, run: RunTagPair, records: list[Record]) -> None:
        # A point that is there already, in key, step, time and value, MLflow's database drops by itself.
        points = [
            Metric(allowed_name(key), value, record["time"], record["step"])
            for record in records
            for key, value in record["values"].items()
        ]
        for some in _parts(points, METRICS):
            self.client.log_batch(self._id(run), metrics=some)

    def _params(self, run: RunTagPair, record: Record) -> None:
        for some in _parts([Param(allowed_name(key), value[:6000]) for key, value in record["values"].items()], PARAMS):
            self.client.log_batch(self._id(run), params=some)

    def _tags(self, run: RunTagPair, record: Record) -> None:
        for some in _parts([RunTag(allowed_name(key), value) for key, value in record["values"].items()], PARAMS):
            self.client.log_batch(self._id(run), tags=some)

    def _trials(self, run: RunTagPair, record: Record) -> None:
        parent = self._id(run)
        there = {found.data.tags[TRIAL]: found.info for found in self._children(parent)}
        for trial in record["trials"]:
            known = there.get(trial["id"])
            if known and known.status == trial["status"]:
                continue
            started = record["time"] - int(1000 * trial["seconds"])
            tags = {MLFLOW_PARENT_RUN_ID: parent, TRIAL: trial["id"]}
            run_id = known.run_id if known else self._start(started, tags, trial["name"])
            metrics = [Metric(allowed_name(key), value, record["time"], 0) for key, value in trial["metrics"].items()]
            params = [Param(allowed_name(key), str(value)) for key, value in trial["parameters"].items()]
            self.client.log_batch(run_id, metrics=metrics, params=params)
            self.client.set_terminated(run_id, trial["status"], record["time"])

    def _children(self, parent: str) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'", max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _start(self, started: int, tags: dict[str, str], name: str) -> str:
        return self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=name).info.run_id

    def _document(self, run: RunTagPair, record: Record) -> None:
        file = self.folder / record["file"]
        if file.exists():  # delivered, if it is gone: it goes with the spool
            self.client.log_artifact(self._id(run), str(file), record["place"])

    def _table(self, run: RunTagPair, record: Record) -> None:
        """As `MlflowClient.log_table` writes one, which would append the rows again the second time."""
        run_id = self._id(run)
        self.client.log_dict(run_id, {"columns": record["columns"], "data": record["data"]}, record["place"])
        listed = json.loads(self.client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        table = {"path": record["place"], "type": "table"}
        if table not in listed:
            self.client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*listed, table][-TABLES:]))

    def _end(self, run: RunTagPair, record: Record) -> None:
        self.client.set_terminated(self._id(run), record["status"], record["time"])


def _parts(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
