"""What is attacked: the real operations on good inputs of which one file is damaged."""

import json
from pathlib import Path
from random import Random

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from benchmarks.fuzz_files import NAMES, Target, checkpoint
from benchmarks.fuzz_mutators import TEXTS, damage_text
from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint, TensorDirectory
from pastry.vectors.compression.compress import compress, decompress
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry.vectors.lora.adapter import Adapter
from pastry.vectors.lora.extract import extract_lora
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.modules import parse_lambda, per_tensor
from pastry.vectors.recipe import parse_recipe

# What read_header says that it refuses although the safetensors library does not.
STRICTER = (
    "stands there twice", "wanted the keys dtype", "not lists of natural numbers", "dtype {",
    "is not a natural number", "Exceeds the limit",
)  # fmt: skip
RECIPES = ["target", "target+skill@alias:0.8", "target+a@3:0.5+b:-1e-3+c", "t+a:attention=1,mlp[0-11]=0.5~1,/lm_head/=0,all=0"]
RULES = ["0.8", "-1e-3", "attention=1,mlp[0-11]=0.5~1,/lm_head|(embed)+/=0,all=0", "norms[0-3]=1~-2,all=1e38~-1e38", "all=0.5"]


def adapter(path: Path) -> Path:
    """A PEFT adapter of rank 1 on one layer of `checkpoint`."""
    path.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "rank_pattern": {"q_proj": 1}, "alpha_pattern": {}, "bias": "none"}
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{layer}A.weight": torch.ones(1, 2), f"{layer}B.weight": torch.ones(2, 1)}
    save_file(factors, path / "adapter_model.safetensors")
    return path


class Header(Target):
    """One safetensors file, read by Pastry and by the safetensors library."""

    share = 30
    attacked = ("x.safetensors",)

    def prepare(self) -> None:
        mixed = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half(), "c": torch.zeros(2, 0)}
        more = {"d": torch.ones(3, dtype=torch.uint8), "e": torch.ones((), dtype=torch.bfloat16)}
        save_file({**mixed, **more}, self.root / "x.safetensors", {"format": "pt"})

    def run(self) -> str | None:
        file = self.root / "x.safetensors"
        theirs, refusal = None, None
        if file.is_file():
            try:
                with safe_open(file, "pt") as opened:
                    theirs = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                    theirs = {name: (part.get_dtype(), part.get_shape()) for name, part in theirs.items()}
            except SafetensorError as error:
                refusal = str(error)
        try:
            directory = TensorDirectory(self.root)
        except PastryError as error:
            if theirs is not None and not any(reason in str(error) for reason in STRICTER):
                return f"the library reads it, Pastry does not: {error}"
            raise
        if theirs is None:
            return f"Pastry reads it, the library does not: {refusal}"
        codes = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8"}
        ours = {name: (info.dtype, list(info.shape)) for name, info in directory.tensors.items()}
        if ours != {name: (codes.get(dtype, dtype), shape) for name, (dtype, shape) in theirs.items()}:
            return f"read differently: {ours} and {theirs}"
        with safe_open(file, "pt") as opened:
            for name, (dtype, _) in ours.items():
                if dtype in codes.values():
                    a, b = directory.read(name), opened.get_tensor(name)
                    if a.shape != b.shape or not torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (a, b))):
                        return f"tensor {name} has other bytes"
        return None


class Index(Target):
    """A sharded checkpoint: opened, its architecture read, and every tensor."""

    share = 25
    attacked = (
        "m/model.safetensors.index.json", "m/config.json", "m/tokenizer.json", "m/tokenizer_config.json",
        "m/chat_template.jinja", "m/model-00001-of-00002.safetensors",
    )  # fmt: skip

    def prepare(self) -> None:
        checkpoint(self.root / "m", 0)

    def damage(self, rng: Random) -> dict[str, bytes]:
        # Without a chat_template.jinja, the key of tokenizer_config.json counts.
        damaged = super().damage(rng)
        if "tokenizer_config.json" in damaged:
            (self.root / "m/chat_template.jinja").unlink()
        return damaged

    def restore(self) -> None:
        super().restore()
        (self.root / "m/chat_template.jinja").write_text("{{ messages }}")

    def run(self) -> str | None:
        opened = Checkpoint(self.root / "m")
        _ = opened.architecture
        for name, info in opened.tensors.items():
            if info.dtype in ("float32", "bfloat16", "float16"):
                opened.read(name)
        return None


class Dense(Target):
    """A skill vector: verified."""

    share = 15
    attacked = ("v/skill.json", "v/skill.safetensors")

    def prepare(self) -> None:
        paths = [checkpoint(self.root / name, seed) for seed, name in enumerate(("end", "start"))]
        extract(*paths, self.root / "v", name="skill")

    def run(self) -> str | None:
        skill = open_skill(self.root / "v")
        skill.verify()
        for name in skill.tensors:
            skill.read(name)
        return None


class Compressed(Dense):
    """The same, compressed."""

    def prepare(self) -> None:
        super().prepare()
        (self.root / "v").rename(self.root / "dense")
        compress(self.root / "dense", self.root / "v")

    def run(self) -> str | None:
        if self.choice.random() < 0.1:
            decompress(self.root / "v", self.root / "out")
        return super().run()


class Inject(Index):
    """A skill injected into a damaged target."""

    share = 8

    def prepare(self) -> None:
        super().prepare()
        paths = [checkpoint(self.root / name, seed) for seed, name in enumerate(("end", "start"))]
        extract(*paths, self.root / "v", name="skill")

    def run(self) -> str | None:
        dtype = self.choice.choice([None, None, "float32", "bfloat16", "float16"])
        inject(self.root / "m", [(self.root / "v", 0.5)], self.root / "out", dtype=dtype)
        return None


class Extract(Index):
    """A skill extracted from a damaged checkpoint and a good one."""

    share = 5

    def prepare(self) -> None:
        super().prepare()
        checkpoint(self.root / "start", 1)

    def run(self) -> str | None:
        pair = [self.root / "m", self.root / "start"]
        extract(*(pair if self.choice.random() < 0.5 else pair[::-1]), self.root / "out", name="skill")
        return None


class Lora(Target):
    """A skill extracted from a damaged PEFT adapter."""

    share = 6
    attacked = ("a/adapter_config.json", "a/adapter_model.safetensors")

    def prepare(self) -> None:
        checkpoint(self.root / "base", 0)
        adapter(self.root / "a")

    def run(self) -> str | None:
        opened = Adapter(self.root / "a")
        for module in opened.modules:
            opened.factor(module, "A")
        extract_lora(self.root / "a", None, self.root / "out", name="skill", base=self.root / "base")
        return None


class Factored(Dense):
    """A skill vector of low-rank factors."""

    share = 6

    def prepare(self) -> None:
        checkpoint(self.root / "base", 0)
        adapter(self.root / "a")
        extract_lora(self.root / "a", None, self.root / "v", name="skill", base=self.root / "base")
        (self.root / "v/factors.safetensors").rename(self.root / "v/skill.safetensors")


class Texts(Target):
    """Recipe names and λ rules; λ of tensors with strange names."""

    share = 10

    def run(self) -> str | None:
        rng = self.choice
        recipe = damage_text(rng, rng.choice(RECIPES))
        if rng.random() < 0.5:
            parse_recipe(recipe)
        else:
            lam = parse_lambda(damage_text(rng, rng.choice(RULES)), "--skill")
            per_tensor(lam, [*NAMES, *rng.sample(TEXTS, 3)], "λ")
        return None

    def damage(self, rng: Random) -> dict[str, bytes]:
        self.choice = rng
        return {}


TARGETS: list[type[Target]] = [Header, Index, Dense, Compressed, Inject, Extract, Lora, Factored, Texts]
