"""Checkpoints to measure with: Llama-shaped, random, seeded, of a wanted size.

    .venv/bin/python benchmarks/vectors/make_models.py --size 4 --out /tmp/models

Writes DIR/start, DIR/end and DIR/target in bfloat16. In float32, end is start plus an update of RMS 1e-5 (what RL at a
small learning rate leaves), target is start plus one of RMS 1e-4 (what SFT on new documents leaves); each is cast once.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROLES = ("start", "end", "target")
SIGMA = 0.02
UPDATE_RMS = {"end": 1e-5, "target": 1e-4}
CHUNK = 1 << 20  # elements made at a time
SHARD_BYTES = 1_000_000_000


class Shape(NamedTuple):
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool


# From a size in GB on. The number of layers follows from the size; 1 GB is the shape of a 0.5 B, 4 GB of a 2 B model.
SHAPES = {
    0.0: Shape(128, 384, 4, 2, 512, False),
    0.25: Shape(896, 4864, 14, 2, 32_000, False),
    0.75: Shape(896, 4864, 14, 2, 151_936, True),
    2.0: Shape(2048, 8192, 32, 8, 128_256, True),
}


def layer_tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    hidden, key_value = shape.hidden, shape.hidden // shape.heads * shape.key_value_heads
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (shape.intermediate, hidden),
        "mlp.up_proj": (shape.intermediate, hidden),
        "mlp.down_proj": (hidden, shape.intermediate),
    }


def model_tensors(shape: Shape, size_gb: float) -> tuple[int, dict[str, tuple[int, ...]]]:
    """The number of layers, and all tensors' names and shapes, of a bfloat16 model of about `size_gb` · 10⁹ bytes."""
    embedding = (shape.vocabulary, shape.hidden)
    layer = layer_tensors(shape)
    rest = size_gb * 1e9 / 2 - math.prod(embedding) * (1 if shape.tied else 2)
    layers = max(1, round(rest / sum(map(math.prod, layer.values()))))
    tensors = {"model.embed_tokens.weight": embedding}
    for number in range(layers):
        tensors |= {f"model.layers.{number}.{name}.weight": dims for name, dims in layer.items()}
    tensors["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        tensors["lm_head.weight"] = embedding
    return layers, tensors


def split(tensors: dict[str, tuple[int, ...]], limit: int) -> list[list[str]]:
    shards, filled = [[]], 0
    for name, dims in tensors.items():
        if shards[-1] and filled + 2 * math.prod(dims) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += 2 * math.prod(dims)
    return shards


def header(tensors: dict[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file of these bfloat16 tensors, in this order, begins with."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors.items():
        begin, end = end, end + 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def values(name: str, elements: int, random: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """The three models' values of one tensor, in chunks, as the bits of bfloat16."""
    for begin in range(0, elements, CHUNK):
        count = min(CHUNK, elements - begin)
        start = random.standard_normal(count, dtype=np.float32)
        start *= SIGMA
        if "norm" in name:
            start += 1
        chunk = {"start": start}
        for role, rms in UPDATE_RMS.items():
            # Uniform: its shape does not matter here, and it is several times faster than a normal one.
            update = random.random(count, dtype=np.float32)
            update -= 0.5
            update *= rms * math.sqrt(12)
            chunk[role] = start + update
        yield {role: torch.from_numpy(of).bfloat16().view(torch.int16).numpy() for role, of in chunk.items()}


def write_companions(directory: Path, shape: Shape, layers: int) -> None:
    """config.json and a tokenizer of single characters."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "bfloat16",
    }
    specials = [{"id": id, "content": token, "special": True} for id, token in enumerate(("<s>", "</s>", "<unk>"))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    vocabulary = {token["content"]: token["id"] for token in specials} | {chr(code): code for code in range(32, 127)}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [token | flags for token in specials],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, **names}
    for file, content in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", tokenizer_config)):
        (directory / f"{file}.json").write_text(json.dumps(content, indent=1))


def make_models(out: Path, size_gb: float, seed: int, shard_bytes: int) -> dict:
    """Write out/start, out/end and out/target, and return what was written."""
    shape = SHAPES[max(least for least in SHAPES if least <= size_gb)]
    layers, tensors = model_tensors(shape, size_gb)
    shards = split(tensors, shard_bytes)
    for role in ROLES:
        (out / role).mkdir(parents=True)
        write_companions(out / role, shape, layers)

    random = np.random.Generator(np.random.SFC64(seed))
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        handles = {role: open(out / role / file, "wb") for role in ROLES}  # noqa: SIM115 (three at once, closed below)
        for handle in handles.values():
            handle.write(header({name: tensors[name] for name in names}))
        for name in names:
            for chunk in values(name, math.prod(tensors[name]), random):
                for role, bits in chunk.items():
                    handles[role].write(bits)
        for handle in handles.values():
            handle.close()

    total = 2 * sum(map(math.prod, tensors.values()))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        for role in ROLES:
            (out / role / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    facts = {"bytes": total, "parameters": total // 2, "tensors": len(tensors), "layers": layers, "shards": len(shards)}
    return facts | {"largest_tensor_bytes": 2 * max(map(math.prod, tensors.values())), "shape": shape._asdict(), "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, required=True, help="GB (10⁹ bytes) of each model in bfloat16; 0.002 is tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    arguments = parser.parse_args()
    began = time.monotonic()
    facts = make_models(arguments.out, arguments.size, arguments.seed, arguments.shard_bytes)
    (arguments.out / "models.json").write_text(json.dumps(facts, indent=1))
    print(f"{arguments.out}: {json.dumps(facts)}, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
