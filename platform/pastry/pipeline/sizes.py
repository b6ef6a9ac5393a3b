"""How much work a stage is, in tokens and in words, and what it leaves on the disk."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pastry.config import PastConfig, RLSettings, TextSettings
from pastry.domains import load_domain, load_epoch
from pastry.pipeline.memory import trained_parameters
from pastry.pipeline.model_size import ModelSize, RunModel, token_counter
from pastry.pipeline.space import lambdas
from pastry.pipeline.stage import Stage

WORDS = {
    "extract": "v = end − start, in float32",
    "signals": "what predicts the gains, from the models that have read and their texts",
    "matrix": "every skill into every target of matrix, test questions",
    "ablation": "the winner's module groups alone and left out, test questions",
    "evaluate": "test questions of the target, every row",
    "register": "skill and recipe into the MLflow registry",
    "report": "report.html, result.json",
}
MOST_CHARACTERS = 20_000_000
"""Longer texts are not tokenised to be counted: that would take longer than half a minute."""


@dataclass(frozen=True)
class Work:
    """What a training stage processes."""

    steps: int
    tokens: int
    known: str
    """"" where `tokens` is counted, "≤" where it is a bound, "~" where it is estimated."""

    def __str__(self) -> str:
        tokens = f"{self.tokens / 1e6:.2f} M" if self.tokens < 1e9 else f"{self.tokens / 1e9:.2f} G"
        return f"{self.known}{' ' if self.known else ''}{tokens} tokens"


@dataclass(frozen=True)
class Disk:
    """Bytes a stage writes to the storage directory."""

    result: int
    """What stays."""
    working: int
    """What is there beside it while the stage runs: checkpoints of training, probes of the gate."""


def work(stage: Stage, model: RunModel) -> Work | None:
    """Steps and tokens of a training stage; None for other kinds."""
    train = stage.settings.get("train")
    if stage.kind == "gate" or train is None:
        return None
    if isinstance(train, RLSettings):
        completions = train.steps * train.questions_per_step * train.group_size
        return Work(train.steps, completions * (longest_prompt(stage, model) + train.max_new_tokens), "≤")
    if train.steps:
        return Work(train.steps, train.steps * train.batch_rows * train.row_tokens, "≤")
    settings = stage.settings
    epoch = load_epoch(
        {"pretrain": "pretraining", "midtrain": "mixture"}.get(stage.kind) or settings["texts"],
        settings["domain"],
        settings["world_seed"],
        name=settings.get("subject"),
        part=settings.get("part", 1),
        mixture=getattr(settings["train"], "mixture", None),
    )
    texts = epoch(random.Random(settings["seed"]))
    exact = model.tokenizer is not None and sum(len(part) for text in texts for part, _ in text.segments) <= MOST_CHARACTERS
    count = token_counter(model.tokenizer if exact else None)
    tokens = train.epochs * sum(_packed(sum(count(part) for part, _ in text.segments) + 1, train) for text in texts)
    return Work(tokens // (train.row_tokens * train.batch_rows), tokens, "" if exact else "~")


def longest_prompt(stage: Stage, model: RunModel) -> int:
    """Tokens of an RL stage's longest prompt."""
    settings = stage.settings
    questions = load_domain(settings["subject"], settings["domain"], settings["world_seed"]).questions(settings["part"])
    longest = sorted((question.prompt for question in questions), key=len)[-16:]
    return max(map(token_counter(model.tokenizer), longest))


def describe(stage: Stage, done: Work | None) -> str:
    """A stage in a few words. `done`: its `work`."""
    settings = stage.settings
    match stage.kind:
        case "gate":
            gate = settings["train"].gate
            return f"probe '{gate.probe}', then up to {gate.extensions} × {gate.extra_steps} more steps"
        case "rl":
            train = settings["train"]
            return f"{train.steps} steps × {train.questions_per_step} questions × {train.group_size}, {done}, lr {train.lr:g}"
        case "search":
            vectors = sum(role.startswith("skill:") for role in stage.inputs)
            return f"{vectors} vector(s) and what is made of them, λ {lambdas(settings['search'])}, on validation questions"
        case "inject":
            return f"target + λ·v, λ = {settings['lambda']}"
        case "base":
            return f"checkpoint {settings['path']}"
    if done is None:
        return WORDS[stage.kind]
    train = settings["train"]
    much = f"{train.epochs} epochs in {done.steps} steps" if train.epochs else f"{done.steps} steps"
    return f"{much}, {done}, lr {train.lr:g}"


def disk(stage: Stage, size: ModelSize, config: PastConfig) -> Disk:
    """Of each kind of stage; results and checkpoints hold float32 weights."""
    model = 4 * size.parameters
    train = stage.settings.get("train")
    match stage.kind:
        case "rl":
            # The start is kept beside the end; an adapter leaves it as it is, and is kept itself.
            beside = 4 * trained_parameters(size, train) if train.lora else model
            return Disk(model + beside, _checkpoints(size, train, config))
        case "pretrain" | "midtrain" | "sft":
            return Disk(model + (4 * trained_parameters(size, train) if train.lora else 0), _checkpoints(size, train, config))
        case "gate":
            return Disk(model, 2 * model + _checkpoints(size, train, config))
        case "extract" | "inject":
            return Disk(model, 0)
    return Disk(0, 0)


def _checkpoints(size: ModelSize, train: TextSettings | RLSettings, config: PastConfig) -> int:
    """Those that are kept, and one more while it is written."""
    if config.checkpoints.every is None:
        return 0
    trained, stored = trained_parameters(size, train), 4 if train.precision == "fp32" else 2
    # Weights and Adam's moments; DeepSpeed's hold the master weights too, and the stored ones under ZeRO-1 and 2 twice.
    each = {"ddp": 12, "zero3": 12 + stored}.get(train.parallelism.removesuffix("_offload"), 12 + 2 * stored)
    return (config.checkpoints.keep + 1) * each * trained


def _packed(tokens: int, train: TextSettings) -> int:
    """Tokens of a text in rows: one that is longer than a row is cut, and each further piece repeats some."""
    rest, fresh = tokens - train.row_tokens, train.row_tokens - train.overlap_tokens
    return tokens + train.overlap_tokens * max(0, -(-rest // fresh))
