"""How fast training goes and how much memory it takes, beside the other numbers of every log line."""

from __future__ import annotations

import re
import resource
import time
from pathlib import Path

import torch
import torch.distributed
from transformers import TrainerCallback


class Meter(TrainerCallback):
    """Adds to the logs of transformers' and TRL's trainers, since the last log line and over all workers:

    `step_seconds` (mean, everything between two steps included), `tokens_per_second` (each token of the steps' rows once, also
    one that RL both sampled and trained on), `memory/process_bytes` and, on GPUs, `memory/gpu_bytes`: the peak so far of the
    worker that holds most.

    It has to stand before any callback that sends the logs away.
    """

    def __init__(self, tokens_per_step: float | None = None):
        """`tokens_per_step`: the mean over the steps, in all workers' rows. None: TRL's GRPOTrainer counts them as it goes."""
        self.tokens_per_step = tokens_per_step

    def on_train_begin(self, args, state, control, **kwargs):
        self._mark(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        steps = state.global_step - self.step
        if not steps:  # the summary at the end
            return
        seconds = time.monotonic() - self.time
        if self.tokens_per_step:
            tokens = steps * self.tokens_per_step
            # TRL's count takes a packed batch for a single row.
            logs["num_tokens"] = state.global_step * self.tokens_per_step
        else:
            tokens = state.num_input_tokens_seen - self.tokens
        logs |= {"step_seconds": seconds / steps, "tokens_per_second": tokens / seconds}
        logs |= _memory(args.device)
        self._mark(state)

    def _mark(self, state) -> None:
        self.step, self.tokens, self.time = state.global_step, state.num_input_tokens_seen, time.monotonic()


def process_peak() -> int:
    """Bytes this process held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux; its getrusage starts from what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _memory(device: torch.device) -> dict[str, int]:
    peaks = {"memory/process_bytes": process_peak()}
    if device.type == "cuda":
        peaks["memory/gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    most = torch.tensor(list(peaks.values()), device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    return dict(zip(peaks, most.tolist(), strict=True))
