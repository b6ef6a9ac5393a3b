"""The float32 master weights of a model in training, wherever they are: in the model itself or sharded by DeepSpeed.

RL at a learning rate of 1e-6 moves most weights by less than one bfloat16 step, so what is saved and measured is taken from
the masters, never from a 16-bit copy. Everything here is collective: every worker calls it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn import Parameter
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.files import atomic_directory
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import plan_shards, write_index


def first_worker() -> bool:
    """Whether this process is the one that writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def is_sharded(parameter: Parameter) -> bool:
    """Whether DeepSpeed holds the parameter's master: `ds_id` is ZeRO-3's mark, `_hp_mapping` that of stages 1 and 2."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def shape(parameter: Parameter) -> torch.Size:
    """A parameter's whole shape; ZeRO-3 leaves an empty tensor in its place."""
    return getattr(parameter, "ds_shape", parameter.shape)


def master(parameter: Parameter) -> torch.Tensor:
    """The float32 master of a trained parameter, whole, on every worker."""
    if not is_sharded(parameter):
        return parameter.detach().float()
    from deepspeed.utils import safe_get_full_fp32_param  # seconds to import, and plain DDP does without

    return safe_get_full_fp32_param(parameter).detach().float()


def trained(model: torch.nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Name and parameter of all that is trained; tied parameters once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


@torch.no_grad()
def set_masters(model: PreTrainedModel, start: Checkpoint) -> None:
    """Make DeepSpeed's masters what the checkpoint says: its engine derives them from a copy already rounded to 16 bits."""
    if isinstance(model, PeftModel):
        return  # a new adapter is no part of the checkpoint, and what it changes is frozen
    for name, parameter in trained(model):
        if not is_sharded(parameter):
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        exact = torch.empty(shape(parameter), device=parameter.device)
        if first_worker():
            exact.copy_(start.read(name))
        torch.distributed.broadcast(exact, 0)
        if hasattr(parameter, "ds_id"):
            # Not `full`: it fails where the elements cannot be shared equally, which DeepSpeed pads for.
            size, rank = parameter.partition_numel(), torch.distributed.get_rank()
            padding = size * torch.distributed.get_world_size() - exact.numel()
            safe_set_local_fp32_param(parameter, pad(exact.flatten(), (0, padding))[size * rank : size * (rank + 1)])
        else:
            safe_set_full_fp32_param(parameter, exact)


@torch.no_grad()
def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write the masters as an ordinary float32 checkpoint, which appears whole in `out`. Memory: one shard on one worker."""
    parameters = dict(trained(model))
    shards = plan_shards("model", (TensorSpec(name, "float32", tuple(shape(p))) for name, p in parameters.items()))

    def collect(directory: Path | None) -> None:
        for shard in shards:
            tensors = {}
            for spec in shard.tensors:
                whole = master(parameters[spec.name])
                if directory:
                    tensors[spec.name] = whole.cpu().contiguous()
            if directory:
                save_file(tensors, directory / shard.file, metadata={"format": "pt"})

    if not first_worker():
        return collect(None)
    with atomic_directory(out) as directory:
        collect(directory)
        write_index(directory, shards, sum(shard.nbytes for shard in shards))
        model.config.dtype = torch.float32
        model.config.save_pretrained(directory)
        if model.generation_config:
            model.generation_config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


@torch.no_grad()
def save_adapter(model: PeftModel, out: Path) -> None:
    """Write the masters of a LoRA adapter in PEFT's own format, in float32, to `out`."""
    masters = {name: master(parameter).cpu() for name, parameter in trained(model)}
    if first_worker():
        with atomic_directory(out) as directory:
            model.peft_config["default"].save_pretrained(directory)
            factors = get_peft_model_state_dict(model, state_dict=masters)
            save_file({name: factor.contiguous() for name, factor in factors.items()}, directory / "adapter_model.safetensors")
