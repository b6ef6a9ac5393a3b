"""How much work a stage is, in words: for --dry-run."""

from __future__ import annotations

from pastry.config import RLSettings, TextSettings
from pastry.pipeline.stage import Stage

WORDS = {
    "extract": "v = end − start, in float32",
    "evaluate": "test questions of the target, every row",
    "register": "skill and recipe into the MLflow registry",
    "report": "report.html, result.json",
}


def describe(stage: Stage) -> str:
    """Steps, tokens and questions of a stage."""
    settings = stage.settings
    match stage.kind:
        case "pretrain" | "sft":
            return _text(settings["train"])
        case "gate":
            gate = settings["train"].gate
            return f"probe '{gate.probe}': {_text(settings['sft'])}; up to {gate.extensions} × {gate.extra_steps} more steps"
        case "rl":
            return _rl(settings["train"])
        case "search":
            sources = sum(role.startswith("skill:") for role in stage.inputs)
            return f"{sources} source(s) × {len(settings['search'].lambdas) + 1} λ on validation questions"
        case "inject":
            return f"target + λ·v, λ = {settings['lambda']}"
        case "base":
            return f"checkpoint {settings['path']}"
    return WORDS[stage.kind]


def _text(train: TextSettings) -> str:
    if train.epochs:
        return f"{train.epochs} epochs, {train.batch_rows} rows × {train.row_tokens} tokens a step, lr {train.lr:g}"
    tokens = train.steps * train.batch_rows * train.row_tokens
    return f"{train.steps} steps, {tokens / 1e6:.2f} M tokens, lr {train.lr:g}"


def _rl(train: RLSettings) -> str:
    return (
        f"{train.steps} steps × {train.questions_per_step} questions × {train.group_size} rollouts "
        f"of ≤ {train.max_new_tokens} tokens, lr {train.lr:g}"
    )
