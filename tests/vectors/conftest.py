"""Small random checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)

from pastry.vectors.checkpoint import Checkpoint  # noqa: E402
from pastry.vectors.files import write_json  # noqa: E402
from pastry.vectors.safetensors_format import TensorSpec  # noqa: E402
from pastry.vectors.shards import plan_shards  # noqa: E402

SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.q_proj.bias": (16,),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.down_proj.weight": (16, 48),
    "model.norm.weight": (16,),
    "lm_head.weight": (32, 16),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<eos>", "special": True}]}


def random_tensors(seed: int, scale: float = 0.02, shapes: dict = SHAPES) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def nearby(tensors: dict[str, torch.Tensor], seed: int, relative: float) -> dict[str, torch.Tensor]:
    """Each element moved by up to ±`relative` of itself: below 0.5 the difference of the two is exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t * (1 + relative * (2 * torch.rand(t.shape, generator=generator) - 1)) for name, t in tensors.items()}


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and torch.equal(a[n].reshape(-1).view(torch.uint8), b[n].reshape(-1).view(torch.uint8))
        for n in a
    )


@pytest.fixture
def save(tmp_path):
    """save(directory, tensors, dtype=…, max_shard_bytes=…) writes a checkpoint directory and returns its path."""

    def save(directory, tensors, dtype=torch.float32, max_shard_bytes=10**9):
        path = tmp_path / directory
        path.mkdir()
        tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        name = "F8_E4M3" if dtype == torch.float8_e4m3fn else str(dtype).removeprefix("torch.")
        specs = [TensorSpec(key, name, tuple(tensor.shape)) for key, tensor in tensors.items()]
        shards = plan_shards("model", specs, max_shard_bytes)
        for shard in shards:
            save_file({s.name: tensors[s.name].contiguous() for s in shard.tensors}, path / shard.file, {"format": "pt"})
        if len(shards) > 1:
            weight_map = {spec.name: shard.file for shard in shards for spec in shard.tensors}
            write_json(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
        (path / "config.json").write_text(json.dumps({**CONFIG, "torch_dtype": str(dtype).removeprefix("torch.")}))
        (path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (path / "chat_template.jinja").write_text("{{ messages }}")
        return path

    return save
