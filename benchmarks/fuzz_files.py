"""Tiny good inputs, and what all targets of the fuzzing have in common: one file is damaged, read, and restored."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

from benchmarks.fuzz_mutators import damage_bytes, damage_json, damage_safetensors

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "hidden_size": 2,
    "tie_word_embeddings": False, "dtype": "bfloat16", "text_config": {"vocab_size": 4, "dtype": "bfloat16"},
}  # fmt: skip
TOKENIZER = {
    "model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 2, "content": "<eos>"}, {"id": 3, "content": "<pad>"}],
}
TOKENIZER_CONFIG = {"chat_template": [{"name": "default", "template": "{{ x }}"}], "eos_token": "<eos>"}
NAMES = ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]


def tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Four small tensors, one of them without elements."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(zip(NAMES, [(4, 2), (4, 2), (2, 2), (0,)], strict=True))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def checkpoint(path: Path, seed: int) -> Path:
    """A model of two shards and an index, with its config and tokenizer."""
    path.mkdir(parents=True)
    weights = tensors(seed)
    files = {"model-00001-of-00002.safetensors": NAMES[:2], "model-00002-of-00002.safetensors": NAMES[2:]}
    for file, names in files.items():
        save_file({name: weights[name] for name in names}, path / file, {"format": "pt"})
    index = {"metadata": {"total_size": 40}, "weight_map": {name: file for file, names in files.items() for name in names}}
    documents = {
        "config.json": CONFIG, "tokenizer.json": TOKENIZER, "tokenizer_config.json": TOKENIZER_CONFIG,
        "model.safetensors.index.json": index,
    }  # fmt: skip
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document))
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


class Target:
    """Good files under `root`, of which `damage` changes one at a time; `run` gives what is wrong, or None."""

    share = 1
    attacked: tuple[str, ...] = ()

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True)
        self.prepare()
        self._good = {name: (root / name).read_bytes() for name in self.attacked}
        self._entries = self._list()
        self._moved: str | None = None
        self.choice = Random(0)

    def prepare(self) -> None:
        """Write the good files."""

    def run(self) -> str | None:
        """The operation. It may raise PastryError and nothing else."""
        raise NotImplementedError

    def damage(self, rng: Random) -> dict[str, bytes]:
        """Damage one of the files; file name → new content, to be kept if it is a finding."""
        self.choice = rng
        name = self._moved = rng.choice(self.attacked)
        path = self.root / name
        if rng.random() < 0.03:
            path.unlink()
            return {path.name: self._replace(rng, path).encode()}
        content = self._change(name)(rng, self._good[name])
        path.write_bytes(content)
        return {path.name: content}

    def restore(self) -> None:
        """Undo `damage`, and remove what was left behind."""
        if self._moved:
            path = self.root / self._moved
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(self._good[self._moved])
        for name in self._list() - self._entries:
            shutil.rmtree(self.root / name)

    def left_behind(self) -> str | None:
        """A finding if the operation left anything beside its output."""
        more = self._list() - self._entries - {"out"}
        return f"left behind: {more}" if more else None

    def _list(self) -> set[str]:
        return set(os.listdir(self.root))

    @staticmethod
    def _change(name: str) -> Callable[[Random, bytes], bytes]:
        if name.endswith(".safetensors"):
            return damage_safetensors
        structural = name.endswith(".json")
        return lambda rng, content: (damage_json if structural and rng.random() < 0.7 else damage_bytes)(rng, content)

    @staticmethod
    def _replace(rng: Random, path: Path) -> str:
        links = ["link to itself", "link to nothing", "link to /dev/zero", "link to .."]
        kind = rng.choice(["nothing", "directory", "pipe", *links])
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind.startswith("link"):
            path.symlink_to({"itself": path.name, "nothing": "nowhere"}.get(goal := kind.removeprefix("link to "), goal))
        return f"{path.name} replaced by {kind}"
