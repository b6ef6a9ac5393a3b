"""How far training has moved the weights, and in which direction, while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback

from pastry.training.masters import first_worker, master, trained
from pastry.vectors.checkpoint import Checkpoint


def updates(model: torch.nn.Module, start: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """θ_now − θ_start of each trained weight, float32, on the CPU of the first worker (nothing on the others).

    Of a LoRA adapter it is the change s·B·A it makes to a layer's weight (Hu et al. 2021, arXiv 2106.09685, section 4.1).
    """
    if isinstance(model, PeftModel):
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                a, b = (master(getattr(layer, side)["default"].weight) for side in ("lora_A", "lora_B"))
                if first_worker():
                    yield f"{name.removeprefix('base_model.model.')}.weight", (layer.scaling["default"] * (b @ a)).cpu()
        return
    for name, parameter in trained(model):
        whole = master(parameter)
        if first_worker():
            yield name, whole.cpu() - start.read(name).float()


class Geometry(TrainerCallback):
    """Adds `update/norm` = ‖θ_now − θ_start‖ to the logs and, where the model's base is known, `update/cosine_to_sft`: the
    cosine to θ_start − θ_base, over all trained weights (PaST, arXiv 2601.11258: near zero for RL)."""

    def __init__(self, start: Checkpoint, base: Checkpoint | None, every: int):
        self.start, self.base, self.every = start, base, every

    @torch.no_grad()
    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if logs is None or "train_runtime" in logs or (state.global_step % self.every and state.global_step != state.max_steps):
            return
        moved = along = sft = 0.0
        for name, update in updates(model, self.start):
            moved += float(update.double().square().sum())
            if self.base:
                read = (self.start.read(name).double() - self.base.read(name).double()).flatten()
                along += float(update.double().flatten() @ read)
                sft += float(read.square().sum())
        logs["update/norm"] = math.sqrt(moved)
        if moved and sft:
            logs["update/cosine_to_sft"] = along / math.sqrt(moved * sft)
