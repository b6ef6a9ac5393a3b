"""One trial: a point of the space, measured on growing subsets of the questions by an actor that holds everything in memory."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from pastry.config import Penalties
from pastry.evaluation.measure import Bench, Evaluator, Items, Measurement
from pastry.evaluation.objective import objective
from pastry.pipeline.space import Point, Space, attached
from pastry.vectors.files import read_json, write_json


@dataclass(frozen=True)
class Sweep:
    """What all trials share."""

    bench: Bench
    space: Space
    items: Items
    subsets: list[int]
    """Questions asked after each step; of the other items the same share."""
    penalties: Penalties
    known: Path
    """A directory that outlives a crash: what has been measured of a point is never measured again."""

    def upto(self, step: int) -> Items:
        """Everything asked by the end of a step, counted from 0."""
        return self.items.part(0, self.share(step))

    @property
    def reference(self) -> Path:
        """The target alone, on all items, once a worker has measured it."""
        return self.known / "reference.json"

    def file(self, point: Point) -> Path:
        """What has been measured of a point."""
        return self.known / f"{identity(point)}.json"

    def share(self, step: int) -> float:
        return self.subsets[step] / self.subsets[-1] if step >= 0 else 0.0


class SkillTrial(tune.Trainable):
    """A trial of Ray Tune; one that follows another in the same process (reuse_actors) finds the weights there."""

    def setup(self, config: dict, *, sweep: Sweep):
        self.sweep = sweep
        self.evaluator = Evaluator(sweep.bench)
        if not sweep.reference.exists():  # every worker needs it before its first trial: to wait for another would be no faster
            write_json(sweep.reference, self.evaluator.measure({}, sweep.items).model_dump())
        self.reference = Measurement(**read_json(sweep.reference))
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        self.point = self.sweep.space.point(new_config)
        self.candidate = self.sweep.space.named[self.point["source"]]
        self.file = self.sweep.file(self.point)
        self.known = read_json(self.file) if self.file.exists() else {"seconds": 0.0, "found": {}}
        self.steps = 0
        return True

    def step(self) -> dict[str, Any]:
        sweep, asked = self.sweep, self.sweep.upto(self.steps)
        found = Measurement(**self.known["found"])
        if len(found.correct) < len(asked.questions):
            started = time.monotonic()
            fresh = sweep.items.part(sweep.share(self.steps - 1), sweep.share(self.steps))
            found += self.evaluator.measure(attached(self.point, self.candidate), fresh)
            self.known = {"seconds": self.known["seconds"] + time.monotonic() - started, "found": found.model_dump()}
            write_json(self.file, self.known)
        found = found.first(asked)
        self.steps += 1
        complete = self.steps == len(sweep.subsets)
        value = objective(found, self.reference.first(asked), sweep.penalties)
        return found.document() | {
            "objective": value,
            "complete": complete,
            "seconds": self.known["seconds"],
            "done": complete,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass  # what was measured is in `known`

    def load_checkpoint(self, checkpoint: dict | None) -> None:
        pass


def identity(point: Point) -> str:
    """The same for the same point, also when Optuna draws it twice."""
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:12]
