"""The weights of a training checkpoint as an ordinary model: what another run may start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import ray.train

from pastry.errors import PastryError
from pastry.vectors.architecture import BASE_FILE
from pastry.vectors.files import atomic_directory, read_json, write_json
from pastry.vectors.lora.merge import merge_adapter

COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "chat_template*", "*.model", BASE_FILE)


def fork_checkpoint(checkpoints: Path, start: Path, out: Path) -> int:
    """Write the float32 weights of the last checkpoint that Ray Train registered in `checkpoints` to the new directory `out`;
    gives its step. Optimizer, schedule and random state stay behind: a run that starts there is a new one.

    `start` is the model that training started from. Raises PastryError if there is no checkpoint, or `out` exists.
    """
    try:
        result = ray.train.Result.from_path(checkpoints)
    except RuntimeError:
        result = None
    if result is None or result.checkpoint is None:
        raise PastryError(f"{checkpoints}: no checkpoint there yet; fork the stage's start, or wait for the first one")
    saved = Path(result.checkpoint.path)
    if (saved / "adapter_config.json").exists():
        merge_adapter(start, saved, out)
        return result.metrics["step"]
    with atomic_directory(out) as directory:
        if any(saved.glob("global_step*")):
            from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

            convert_zero_checkpoint_to_fp32_state_dict(str(saved), str(directory), safe_serialization=True)
        else:
            for file in saved.glob("model*.safetensors*"):
                shutil.copyfile(file, directory / file.name)
        for pattern in COMPANIONS:
            for file in start.glob(pattern):
                shutil.copyfile(file, directory / file.name)
        # transformers loads in the dtype that config.json states: the start's may be a 16-bit one.
        write_json(directory / "config.json", read_json(start / "config.json") | {"dtype": "float32"}, allow_nan=True)
    return result.metrics["step"]
