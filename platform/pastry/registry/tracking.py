"""MLflow runs: one for a Pastry run, one inside it for each stage. All they are told goes through the outbox."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import requests
from mlflow.exceptions import MlflowException

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry.client import artifact_place, connect
from pastry.registry.delivery import Delivery, RunTagPair
from pastry.registry.lines import JsonLines
from pastry.registry.outbox import FOLDER, Outbox
from pastry.vectors.files import read_json, write_json

T = TypeVar("T")
START_SECONDS = 10.0
"""How long a server may take to answer at the first start."""
END_SECONDS = 10.0
"""How long the end waits for what is still to be delivered."""
PATIENCE_SECONDS = 300.0
"""How long registering waits for a server that is away."""


def tracking_uri(tracking: Tracking, storage: Path) -> str:
    """Where MLflow's data goes: the setting, else MLFLOW_TRACKING_URI, else an SQLite file in the storage directory."""
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage.absolute()}/mlflow.db"


def now() -> int:
    """Milliseconds since 1970, MLflow's time."""
    return int(time.time() * 1000)


class Tracker:
    """A Pastry run in MLflow. Starting it again finds the run it left. Use as a context manager: an exception is its failure.

    The first start needs the server and raises PastryError without it; later it may be away at any time. `say` tells the user.
    """

    def __init__(self, tracking: Tracking, storage: Path, name: str, tags: dict[str, str], say: Callable[[str], None] = print):
        self.uri, self.say = tracking_uri(tracking, storage), say
        self.client = connect(self.uri)
        folder = storage / name / FOLDER
        self.delivery = Delivery(self.client, tracking.experiment, artifact_place(self.uri), folder)
        if not folder.exists():
            self._first_contact()
        self.outbox = Outbox(folder, self.delivery, say)
        self.run: RunTagPair = ("pastry.run", name)
        self.put("create", self.run, name=name, tags={}, parent=None)
        self.put("tags", self.run, values=tags)
        self.put("sweep", self.run)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if error:
            self.put("end", self.run, status="FAILED")
        self.outbox.close(END_SECONDS)

    def _first_contact(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self.delivery.experiment_id
            except MlflowException as error:
                if self.delivery.refuses(error) or time.monotonic() > deadline:
                    raise PastryError(
                        f"{self.delivery.explain(error)}: start it, correct tracking.uri (or MLFLOW_TRACKING_URI), "
                        "or leave both out to track in an SQLite file beside the run"
                    ) from None
                time.sleep(1)

    def put(self, do: str, run: RunTagPair, *, document: Path | None = None, at: int | None = None, **record: Any) -> None:
        """A record for the outbox; `do` names the method of Delivery that it is for."""
        self.outbox.put({"do": do, "run": run, "time": at or now(), **record}, document)

    def stage(
        self, name: str, kind: str, parameters: dict[str, Any], watcher: Callable[[dict[str, float]], None], work: Path
    ) -> StageRun:
        """Start a stage's own run inside this one; `watcher` sees every logged point.

        `work` is a directory that lasts until the stage is done: started again with the same one, a stage goes on with the
        run and the curves it has.
        """
        work.mkdir(parents=True, exist_ok=True)
        identity = work / "stage_run.json"
        if not identity.exists():
            write_json(identity, {"id": uuid.uuid4().hex})
        run = ("pastry.stage_run", read_json(identity)["id"])
        self.put("create", run, name=name, tags={"pastry.stage": name, "pastry.kind": kind}, parent=self.run)
        self.put("params", run, values={key: str(value) for key, value in parameters.items()})
        return StageRun(self, run, watcher, work / "curves.jsonl")

    def finish(self, metrics: dict[str, float], artifacts: list[Path]) -> None:
        """End the whole run: its headline numbers and its documents."""
        self.put("metrics", self.run, step=0, values=metrics)
        for artifact in artifacts:
            self.put("document", self.run, document=artifact, place=None)
        self.put("end", self.run, status="FINISHED")


class StageRun:
    """One stage in MLflow, its training curves, and whoever watches them."""

    def __init__(self, tracker: Tracker, run: RunTagPair, watcher: Callable[[dict[str, float]], None], file: Path):
        self.tracker, self.run, self.watcher, self.file = tracker, run, watcher, JsonLines(file)
        self.points: list[dict[str, Any]] = self.file.read()
        """{"time", "point"} of every logged point, over all starts of the stage."""
        self.redone: dict[int, int] = {}
        """Step → time of the points logged after a checkpoint that training then went back to."""

    @property
    def curves(self) -> list[dict[str, float]]:
        """The finite numbers of every point, in order."""
        return [kept["point"] for kept in self.points]

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; if the server does not answer now, the value of the run's tag `pastry.stage_run`."""
        return self._mlflow_id() or self.run[1]

    def _mlflow_id(self) -> str | None:
        ids = self.tracker.delivery.ids
        self.tracker.outbox.wait(lambda: self.run in ids, END_SECONDS)
        return ids.get(self.run)

    def log(self, numbers: dict[str, float | None]) -> None:
        """One point of the training curves; `step` is its place, None means no value.

        A step that is not above the last one means that training went back to a checkpoint: the points from that step on are
        replaced. They get the time they had, so that MLflow, which keeps them for ever, shows equal ones once.
        """
        numbers = {key: value for key, value in numbers.items() if value is not None}
        step = int(numbers["step"])
        self._cut(step)
        at = self.redone.get(step) or now()
        point = {key: value for key, value in numbers.items() if math.isfinite(value)}
        self.points.append({"time": at, "point": point})
        with suppress(OSError):  # a full disk; the curves are in memory
            self.file.append(self.points[-1])
        self.watcher(numbers)
        values = {key: float(value) for key, value in numbers.items() if key not in ("step", "steps")}
        self.tracker.put("metrics", self.run, at=at, step=step, values=values)

    def _cut(self, step: int) -> None:
        if not self.points or self.points[-1]["point"]["step"] < step:
            return
        while self.points and self.points[-1]["point"]["step"] >= step:
            last = self.points.pop()
            self.redone[int(last["point"]["step"])] = last["time"]
        self.file.keep(len(self.points))

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """A table of completions to browse: rows of the same keys, such as prompt, completion and reward."""
        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        self.tracker.put("table", self.run, place=f"completions/step-{step:06}.json", columns=columns, data=data)

    def trials(self, rows: list[dict[str, Any]]) -> None:
        """Runs inside this one, all in one record.

        Of each "id" (unique in it), "name", "parameters", "metrics", "status", "seconds". What is there already with the same
        id and status is left alone.
        """
        self.tracker.put("trials", self.run, trials=rows)

    def keep(self, document: Path, place: str | None = None) -> None:
        """Store a small file with the run, in the folder `place`."""
        self.tracker.put("document", self.run, document=document, place=place)

    def insist(self, action: Callable[[str], T]) -> T:
        """`action(MLflow's id of this run)`, which needs the server now and may be repeated: waits for it, and says so.

        Raises PastryError after PATIENCE_SECONDS, and what MLflow refuses at once.
        """
        deadline, told, trouble = time.monotonic() + PATIENCE_SECONDS, False, f"MLflow at {self.tracker.uri} does not answer"
        while True:
            try:
                if run_id := self._mlflow_id():
                    return action(run_id)
            except (MlflowException, requests.RequestException) as error:
                if self.tracker.delivery.refuses(error):
                    raise
                trouble = self.tracker.delivery.explain(error)
            if time.monotonic() > deadline:
                raise PastryError(f"{trouble}, and the registry is there: start it and run the same command again")
            if not told:
                self.tracker.say(f"{trouble}; waiting for it, up to {PATIENCE_SECONDS / 60:.0f} minutes")
                told = True
            time.sleep(1)

    def end(self, metrics: dict[str, float], tags: dict[str, str], status: str) -> None:
        """Close the run with the stage's final numbers."""
        self.tracker.put("metrics", self.run, step=0, values={key: float(value) for key, value in metrics.items()})
        self.tracker.put("tags", self.run, values=tags)
        self.tracker.put("end", self.run, status=status)
