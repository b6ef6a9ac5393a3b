"""Training that survives: checkpoints on shared storage, and one more before a pre-emption takes the worker away."""

from __future__ import annotations

from pathlib import Path

import ray.train
import torch
import torch.distributed
from transformers import TrainerCallback

from pastry.training.masters import first_worker


class Checkpoints(TrainerCallback):
    """Hands every checkpoint the trainer has written to Ray Train, which copies it from all workers to shared storage and
    registers it once all of it is there.

    After each step it looks whether it is asked to stop (the file `stop` exists) or a node is about to be taken away; in
    both cases the trainer saves first. `stopped` says that training was broken off on request.
    """

    def __init__(self, stop: Path, watch_nodes: bool):
        self.stop, self.watch_nodes = stop, watch_nodes
        self.stopped = self.saved_for_preemption = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            control.should_save = False  # what comes next is the trained model
            return
        if self._asked_to_stop(args.device):
            self.stopped = control.should_save = control.should_training_stop = True
        if self.watch_nodes and not self.saved_for_preemption and ray.train.get_preemption_info():
            self.saved_for_preemption = control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        written = Path(args.output_dir, f"checkpoint-{state.global_step}")
        ray.train.report(
            {"step": state.global_step},
            checkpoint=ray.train.Checkpoint.from_directory(written),
            delete_local_checkpoint_after_upload=True,
        )

    def _asked_to_stop(self, device: torch.device) -> bool:
        # One worker looks and tells the others: all must stop after the same step.
        asked = torch.tensor(int(first_worker() and self.stop.exists()), device=device)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(asked, 0)
        return bool(asked)
