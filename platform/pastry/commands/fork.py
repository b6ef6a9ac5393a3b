"""`pastry fork`: the weights of a stage as the base of another run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pastry.commands.options import AsJson, say
from pastry.errors import PastryError


def fork(
    config: Annotated[Path, typer.Argument(help="YAML settings of the run, as it was started.")],
    stage: Annotated[str, typer.Argument(help="A training stage of it, for example rl/planet/1; finished or not.")],
    out: Annotated[Path, typer.Option(help="New directory for the model.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="The run's changed settings.", metavar="[KEY=VALUE]...")] = None,
    as_json: AsJson = False,
) -> None:
    """Take a stage's weights as an ordinary model, from which a new run can start (base: OUT).

    Of an unfinished stage: those of its last checkpoint. Optimizer, schedule and random state stay behind. To go on with the
    run itself, start it again with the same settings: it resumes.
    """
    from pastry.config import load_config
    from pastry.pipeline.runner import Run
    from pastry.pipeline.stage import TRAINING
    from pastry.training.fork import fork_checkpoint
    from pastry.vectors.files import atomic_directory, refuse_existing

    refuse_existing(out)
    run = Run(load_config(config, overrides or []))
    trained = {each.name: each for each in run.stages if each.kind in TRAINING}
    if stage not in trained:
        raise PastryError(f"the run has no training stage '{stage}'; it has: {', '.join(trained)}")
    if run.done(stage):
        with atomic_directory(out) as directory:
            shutil.copytree(run.path(stage) / "model", directory, dirs_exist_ok=True)
        step = "the end"
    else:
        if "start" not in trained[stage].inputs:
            raise PastryError(f"'{stage}' is not finished, and has no start to take the tokenizer from; wait until it is done")
        start = run.path(trained[stage].inputs["start"]) / "model"
        step = f"step {fork_checkpoint(run.work(stage) / 'checkpoints', start, out)}"
    say(as_json, {"stage": stage, "at": step, "out": str(out)}, f"{out}: {stage} at {step}; next: a config with base: {out}")
