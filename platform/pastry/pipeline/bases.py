"""Where everything starts: a given checkpoint, or a base made from scratch that must pass a gate; mid-trained, if asked."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import ray
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from pastry.config import GenerationSettings, TextSettings
from pastry.domains import load_corpus, load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.errors import PastryError
from pastry.evaluation.score import score
from pastry.pipeline.stage import Context
from pastry.pipeline.training import train
from pastry.pipeline.workers import remote
from pastry.registry.resolve import REGISTERED, local_path
from pastry.training.job import LanguageModelJob
from pastry.vectors.checkpoint import checkpoint_fingerprint

GATE_QUESTIONS = 324
"""Pre-training questions the gate asks: a quarter of the lab's."""


def base(context: Context) -> dict[str, Any]:
    """A link to a checkpoint on disk or in the registry, or to the Hugging Face cache's copy of a named one."""
    wanted = context.settings["path"]
    path = local_path(wanted, context.run.tracker.uri) if wanted.startswith(REGISTERED) else Path(wanted)
    if not path.is_dir():
        try:
            path = Path(snapshot_download(wanted, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]))
        except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError) as error:
            raise PastryError(f"base '{wanted}': neither a directory nor a model that Hugging Face gives: {error}") from None
    (context.out / "model").symlink_to(path.absolute())
    return {"fingerprint": checkpoint_fingerprint(path)}


def pretrain(context: Context) -> dict[str, Any]:
    """A new model and its tokenizer, from the domain's pre-training corpus."""
    settings = context.settings
    tokenizer = context.out / "tokenizer"
    load_corpus(settings["domain"], settings["world_seed"]).save_tokenizer(tokenizer)
    train(context, partial(LanguageModelJob, texts="pretraining", shape=settings["train"].model, tokenizer=str(tokenizer)))
    shutil.rmtree(tokenizer)  # saved with the model
    return {"fingerprint": checkpoint_fingerprint(context.out / "model")}


def gate(context: Context) -> dict[str, Any]:
    """Let a base through that recalls well enough for RL to find the skill; train one that does not further.

    RL strengthens whichever way of answering is the more accurate when it starts. The probe: SFT, in one stage or two, on
    a domain that is neither source nor target, then its questions with recall forced by a prefix.
    """
    settings, gate = context.settings, context.settings["train"].gate
    current, log = context.model("start"), []
    for extension in range(gate.extensions + 1):
        if extension:
            longer = settings["train"].model_copy(update={"steps": gate.extra_steps, "epochs": None})
            current = _train(context, "pretraining", longer, current, extension)
        probe = _train(context, "documents", settings["sft"], current, extension)
        if settings["sft"].second:
            probe = _train(context, "derived", settings["sft"].second, probe, extension)
        ask = remote(_ask, context.config.resources)
        found = ray.get(ask(current, probe, gate.probe, settings["domain"], settings["world_seed"], settings["generation"]))
        log.append(found)
        passed = found["prompted"] >= gate.prompted_accuracy and found["pretraining"] >= gate.pretraining_accuracy
        if passed:
            break
    shutil.copytree(current, context.out / "model")
    return {
        "fingerprint": checkpoint_fingerprint(context.out / "model"),
        "gate_passed": passed,
        "gate_tries": log,
        "gate_wanted": {"prompted": gate.prompted_accuracy, "pretraining": gate.pretraining_accuracy},
    }


def midtrain(context: Context) -> dict[str, Any]:
    """Pre-training's objective on another mixture of texts, from the base's weights; it gives the base of all that follows."""
    start, mixture = str(context.model("start")), context.settings["train"].mixture
    train(context, partial(LanguageModelJob, texts="mixture", mixture=mixture, start=start))
    return {"fingerprint": checkpoint_fingerprint(context.out / "model")}


def _train(context: Context, texts: str, settings: TextSettings, start: Path, extension: int) -> Path:
    at = context.work / f"{texts}-{extension}"
    if not (at / "model").exists():  # else a killed gate got that far
        job = partial(LanguageModelJob, texts=texts, start=str(start), domain=context.settings["train"].gate.probe)
        train(context, job, at=at, train=settings, seed=context.settings["seed"] + extension)
    return at / "model"


def _ask(base: Path, probe: Path, subject: str, domain_settings, seed: int, generation: GenerationSettings) -> dict[str, float]:
    domain = load_domain(subject, domain_settings, seed)
    asked = load_corpus(domain_settings, seed).pretraining_questions()
    asked = asked[:: max(1, len(asked) // GATE_QUESTIONS)]
    return {
        "prompted": score("probe", TransformersEngine(probe), domain, domain.questions(1), generation, prompted=True).accuracy,
        "pretraining": score("pretraining", TransformersEngine(base), domain, asked, generation).accuracy,
    }
