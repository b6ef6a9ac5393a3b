"""What a run shows while it runs: which stage, how far, how long still."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pastry.pipeline.stage import Stage

PLAIN_SECONDS = 10
"""Without a terminal (a job's log) a line appears this often instead of a moving bar."""
REPEATED = ("gate", "sft", "rl")
"""Kinds of training that resemble each other in length: one stands in for another that has not been seen yet."""
LIGHT_SECONDS = 5.0
"""The guess for any other kind."""
SHOWN = {"loss": "loss", "reward": "reward", "rewards/recall/mean": "recall", "accuracy": "accuracy", "kl": "kl"}


def duration(seconds: float) -> str:
    """ "8 s" or "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class RunProgress:
    """Follows a run of `total` stages. Use as a context manager."""

    def __init__(self, stages: list[Stage], already: dict[str, float]):
        self.stages, self.seconds = stages, dict(already)
        self.console = Console(highlight=False)
        self.bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )

    def __enter__(self) -> RunProgress:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def start(self, stage: Stage) -> None:
        """A stage begins."""
        self.stage, self.started, self.printed = stage, time.monotonic(), time.monotonic()
        self.task = self.bar.add_task(self._label(), total=None, detail="starting")
        if not self.console.is_terminal:
            self.console.print(f"{self._label()} …")

    def update(self, numbers: dict[str, float]) -> None:
        """A stage's log point: `step` of `steps`, and whatever is worth showing."""
        step, steps = int(numbers["step"]), int(numbers["steps"])
        spent = time.monotonic() - self.started
        left = numbers.get("seconds", spent) / step * (steps - step)
        values = "  ".join(f"{name} {numbers[key]:.3f}" for key, name in SHOWN.items() if key in numbers)
        # The first step pays for the start; nothing can be told from it.
        estimate = f"{duration(left)} left, {self._run_left(left)}" if step > 1 else ""
        detail = f"{step}/{steps}  {values}  {estimate}"
        self.bar.update(self.task, completed=step, total=steps, detail=detail)
        if not self.console.is_terminal and time.monotonic() - self.printed > PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.console.print(f"    {detail}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Something the user must know while the stage runs."""
        self.console.print(f"    {text}", soft_wrap=True)

    def finish(self, stage: Stage, seconds: float, headline: str) -> None:
        """A stage is done."""
        self.bar.remove_task(self.task)
        self.console.print(f"{self._label()}  {duration(seconds)}  {headline}", soft_wrap=True)
        self.seconds[stage.name] = seconds

    def _label(self) -> str:
        place = self.stages.index(self.stage) + 1
        return f"[{place:2}/{len(self.stages)}] {self.stage.name}"

    def _run_left(self, stage_left: float) -> str:
        """Stages to come are guessed from finished ones of their kind; a kind not seen yet from other training."""
        known: dict[str, list[float]] = {}
        for stage in self.stages:
            if stage.name in self.seconds:
                known.setdefault(stage.kind, []).append(self.seconds[stage.name])
        training = [seconds for kind in REPEATED for seconds in known.get(kind, [])]
        if not training:
            return "run: no estimate yet"
        left = stage_left
        for stage in self.stages:
            if stage.name not in self.seconds and stage is not self.stage:
                measured = known.get(stage.kind) or (training if stage.kind in REPEATED else [LIGHT_SECONDS])
                left += sum(measured) / len(measured)
        return f"run: about {duration(left)} left"
