"""Run a plan: skip what is done, do the rest in order, leave nothing half-done."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pastry.config import PastConfig
from pastry.errors import Interrupted, PastryError
from pastry.pipeline.feasible import check_resources, check_settings, shared_batches
from pastry.pipeline.forecast import forecast
from pastry.pipeline.plan import plan
from pastry.pipeline.progress import RunProgress
from pastry.pipeline.stage import MARKER, Context, Stage
from pastry.pipeline.storage import storage
from pastry.pipeline.workers import connect, most_workers
from pastry.registry.outbox import waiting
from pastry.registry.versions import INPUTS
from pastry.vectors.files import atomic_directory, read_json, write_json


class Run:
    """A run's directory: `stages/NAME-DIGEST/` for each stage, links to what people look for beside them."""

    def __init__(self, config: PastConfig):
        self.config = config
        self.directory = storage(config) / config.name
        self.workers = worker_count(config)
        check_settings(config, self.workers)
        self.stages = plan(config, self.workers)
        digests: dict[str, str] = {}
        for stage in self.stages:
            digests[stage.name] = stage.digest({role: digests[name] for role, name in stage.inputs.items()})
        self.digests = digests

    def path(self, name: str) -> Path:
        """A stage's directory, made or not."""
        return self.directory / "stages" / f"{name.replace('/', '.')}-{self.digests[name][:10]}"

    def work(self, name: str) -> Path:
        """Where a stage keeps what a kill must not take: checkpoints, until it is done."""
        return self.directory / "work" / self.path(name).name

    def done(self, name: str) -> bool:
        """The marker is written last and the directory appears whole: it is there or the stage is not done."""
        return (self.path(name) / MARKER).is_file()

    def marker(self, name: str) -> dict:
        """What a finished stage says of itself."""
        return read_json(self.path(name) / MARKER)

    def wanted(self, kind: str | None) -> list[Stage]:
        """Every stage, or those of a kind and what they depend on."""
        names = {stage.name for stage in self.stages if kind in (None, stage.kind)}
        if not names:
            kinds = ", ".join(dict.fromkeys(stage.kind for stage in self.stages))
            raise PastryError(f"this run has no {kind} stage; it has: {kinds}")
        for stage in reversed(self.stages):
            if stage.name in names:
                names.update(stage.inputs.values())
        return [stage for stage in self.stages if stage.name in names]

    def execute(self, kind: str | None = None) -> bool:
        """Do what is not done. Returns False when there was nothing to do (but to deliver what MLflow has not got yet)."""
        stages = self.wanted(kind)
        missing = [stage for stage in stages if not self.done(stage.name)]
        if not missing and not waiting(self.directory):
            return False
        with self._alone():
            if missing:
                check_resources(forecast(self.config, self.workers, missing, storage(self.config)), missing, starting=True)
                connect()
            from pastry.registry.tracking import Tracker  # MLflow takes seconds to import: not for a finished run

            already = {stage.name: self.marker(stage.name)["seconds"] for stage in stages if self.done(stage.name)}
            with (
                RunProgress(stages, already) as progress,
                Tracker(
                    self.config.tracking,
                    storage(self.config),
                    self.config.name,
                    {"pastry.seed": str(self.config.seed)},
                    partial(progress.console.print, soft_wrap=True, markup=False),
                ) as tracker,
            ):
                if already:
                    progress.console.print(f"{len(already)} of {len(stages)} stages are done already")
                for stage in missing:
                    if self._execute(stage, tracker, progress):
                        raise Interrupted(f"stopped as asked after {stage.name}; the same command goes on from there")
                seconds = {f"seconds/{name}": seconds for name, seconds in progress.seconds.items()}
                tracker.finish(seconds, publish(self, stages))
        return bool(missing)

    def _execute(self, stage: Stage, tracker, progress: RunProgress) -> bool:
        """Do one stage. Returns whether the process was asked to stop meanwhile."""
        progress.start(stage)
        started = time.monotonic()
        inputs = {role: self.path(name) for role, name in stage.inputs.items()}
        work = self.work(stage.name)
        work.mkdir(parents=True, exist_ok=True)
        record = tracker.stage(stage.name, stage.kind, flat(stage.settings), progress.update, work)
        try:
            with atomic_directory(self.path(stage.name)) as out:
                context = Context(stage, self.config, inputs, out, work, record, progress.say)
                with sigterm_makes(context.stop):
                    metrics = stage.function()(context)
                seconds = time.monotonic() - started
                write_json(out / "curves.json", {"points": record.curves})
                write_json(
                    out / MARKER,
                    {
                        "stage": stage.name,
                        "kind": stage.kind,
                        "digest": self.digests[stage.name],
                        "inputs": stage.inputs,
                        "settings": {key: str(value) for key, value in flat(stage.settings).items()},
                        "metrics": metrics,
                        "seconds": seconds,
                        "workers": self.workers,
                        "run_id": record.run_id,
                        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                    },
                )
        except BaseException:
            record.end({}, {}, "FAILED")
            raise
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        texts = {f"pastry.{key}": str(value) for key, value in metrics.items() if not isinstance(value, int | float)}
        texts |= {"pastry.digest": self.digests[stage.name], "pastry.path": str(self.path(stage.name))}
        texts |= self._lineage(stage)
        record.end(numbers | {"seconds": seconds}, texts, "FINISHED")
        progress.finish(stage, seconds, headline(metrics))
        asked = context.stop.exists()
        shutil.rmtree(work)
        return asked

    def _lineage(self, stage: Stage) -> dict[str, str]:
        """For a stage that made weights the tag that says from what: role → fingerprint, or digest of data."""
        path = self.path(stage.name)
        if not (path / "model").exists() and not (path / "skill").exists():
            return {}
        made = {role: self.marker(name)["metrics"].get("fingerprint") for role, name in stage.inputs.items()}
        made |= {"data": stage.settings.get("data")}
        if stage.kind == "inject":  # of all the skills that it could have injected, those that it did
            from pastry.registry.origin import origin  # as slow to import as all of pastry.vectors

            made = origin(path / "model", self.marker(stage.name)["metrics"]["fingerprint"]).inputs
        return {INPUTS: json.dumps({role: each for role, each in made.items() if each})}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time; what a killed one left half-written goes."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PastryError(f"{self.directory}: another process is at work on this run; wait for it or stop it") from None
            for left in (self.directory / "stages").glob(".*.tmp-*"):
                shutil.rmtree(left)
            for stage in self.stages:
                if self.done(stage.name):  # killed before it could tidy up
                    shutil.rmtree(self.work(stage.name), ignore_errors=True)
            yield


@contextmanager
def sigterm_makes(stop: Path) -> Iterator[None]:
    """SIGTERM, which a scheduler sends before it takes a machine away, makes the file `stop`: training saves and ends;
    a stage that does not train is finished."""
    stop.unlink(missing_ok=True)
    before = signal.signal(signal.SIGTERM, lambda *_: stop.touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def worker_count(config: PastConfig) -> int:
    """As set; auto: as many as there are places for, and as share every batch equally."""
    if config.resources.workers != "auto":
        return config.resources.workers
    sizes = shared_batches(config).values()
    return max(n for n in range(1, most_workers(config.resources) + 1) if all(size % n == 0 for size in sizes))


def flat(settings: dict, prefix: str = "") -> dict[str, str]:
    """Settings as dotted keys, for MLflow's parameters."""
    result: dict[str, str] = {}
    for key, value in settings.items():
        value = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


HEADLINES = {
    "gate_passed": lambda passed: "gate passed" if passed else "GATE MISSED: RL may not find the skill",
    "realised_ratio": lambda ratio: f"realised ratio {ratio:.4f}" if ratio is not None else "",
    "norm": lambda norm: f"norm {norm:.3g}" if norm else "the vector is ZERO: RL changed no weight, its rewards never differed",
    "cosine_to_sft": lambda cosine: f"cosine to the SFT update {cosine:+.3f}" if cosine is not None else "",
    "lambda_best": lambda lam: f"best λ {lam}",
    "validation_accuracy": lambda accuracy: f"validation accuracy {accuracy:.3f}",
    "fresh_accuracy": lambda accuracy: f"on fresh questions {accuracy:.3f}",
    "accuracy/target_sft": lambda accuracy: f"target SFT {accuracy:.3f}",
    "accuracy/past_at_best": lambda accuracy: f"PaST {accuracy:.3f}",
}


def headline(metrics: dict) -> str:
    """A finished stage in a few words."""
    return ", ".join(filter(None, (say(metrics[key]) for key, say in HEADLINES.items() if key in metrics)))


def publish(run: Run, stages: list[Stage]) -> list[Path]:
    """Links beside `stages/` to what people look for; gives the documents that go to MLflow."""
    links = {}
    for stage in stages:
        if stage.kind == "report":
            links |= {name: run.path(stage.name) / name for name in ("report.html", "result.json")}
        if stage.name in (f"sft/{run.config.target}", f"sft/{run.config.target}/second"):  # the later one stays
            links["target"] = run.path(stage.name) / "model"
        if stage.kind == "search":
            links["skill"] = run.path(stage.name) / "winner"
    for name, path in links.items():
        link, fresh = run.directory / name, run.directory / f".{name}.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(path, run.directory))
        os.replace(fresh, link)
    return [run.directory / name for name in links if name in ("report.html", "result.json")]
