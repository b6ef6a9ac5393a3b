"""What happens around the trainers' steps: progress to the driver, sample completions, the weights RL starts from."""

from __future__ import annotations

import time
from pathlib import Path

from ray.util.queue import Queue
from transformers import PreTrainedTokenizerBase, TrainerCallback

from pastry.training.masters import first_worker, save_model, set_masters
from pastry.training.rewards import Rewards
from pastry.vectors.checkpoint import Checkpoint

MOST_SAMPLES = 32
"""Completions of a step that are kept."""


class Progress(TrainerCallback):
    """Sends every log line of the first worker to the driver."""

    def __init__(self, queue: Queue):
        self.queue, self.started = queue, time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        if first_worker() and state.global_step:
            self.queue.put({"resumed": state.global_step})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if first_worker() and logs and "train_runtime" not in logs:
            numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
            self.queue.put(
                {"step": state.global_step, "steps": state.max_steps, "seconds": time.monotonic() - self.started, **numbers}
            )


class Samples(TrainerCallback):
    """Sends some of the first worker's completions to the driver, for people to read."""

    def __init__(self, queue: Queue, rewards: Rewards, every: int):
        self.queue, self.rewards, self.every = queue, rewards, every

    def on_step_end(self, args, state, control, **kwargs):
        wanted = state.global_step == 1 or state.global_step % self.every == 0 or state.global_step == state.max_steps
        if wanted and first_worker():
            self.queue.put({"step": state.global_step, "samples": self.rewards.samples(MOST_SAMPLES)})


class KeepStart(TrainerCallback):
    """Before the first step: exact masters, and for RL a copy of them, which is what the skill vector is taken from."""

    def __init__(self, start: Checkpoint, keep_in: Path | None, tokenizer: PreTrainedTokenizerBase):
        self.start, self.keep_in, self.tokenizer = start, keep_in, tokenizer

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            set_masters(model, self.start)
            # An earlier attempt may have died after writing it; every worker looks before any can have written it.
            if self.keep_in and not self.keep_in.exists():
                save_model(model, self.tokenizer, self.keep_in)
