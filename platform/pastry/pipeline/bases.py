"""Where everything starts: a given checkpoint, or a base made from scratch that must pass a gate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ray
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from pastry.config import GenerationSettings
from pastry.domains import load_corpus, load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.errors import PastryError
from pastry.evaluation.score import score
from pastry.pipeline.stage import Context
from pastry.pipeline.training import job_settings
from pastry.pipeline.workers import remote
from pastry.registry.resolve import REGISTERED, local_path
from pastry.training.job import LanguageModelJob
from pastry.training.launch import run_training
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
    settings, train = context.settings, context.settings["train"]
    tokenizer = context.out / "tokenizer"
    load_corpus(settings["domain"], settings["world_seed"]).save_tokenizer(tokenizer)
    job = LanguageModelJob(
        texts="pretraining", shape=train.model, tokenizer=str(tokenizer), **job_settings(settings, context.config)
    )
    run_training(job, context.config.resources, settings["workers"], context.out, context.run.log)
    shutil.rmtree(tokenizer)  # saved with the model
    return {"fingerprint": checkpoint_fingerprint(context.out / "model")}


def gate(context: Context) -> dict[str, Any]:
    """Let a base through that recalls well enough for RL to find the skill; train one that does not further.

    RL strengthens whichever way of answering is the more accurate when it starts. The probe: document SFT on a domain
    that is neither source nor target, then its questions with recall forced by a prefix.
    """
    settings, gate = context.settings, context.settings["train"].gate
    current, log = context.model("start"), []
    for extension in range(gate.extensions + 1):
        if extension:
            train = settings["train"].model_copy(update={"steps": gate.extra_steps, "epochs": None})
            current = _train(context, "pretraining", train, current, extension)
        probe = _train(context, "documents", settings["sft"], current, extension)
        ask = remote(_ask, context.config.resources)
        found = ray.get(ask(current, probe, gate.probe, settings["domain"], settings["world_seed"], settings["generation"]))
        log.append(found)
        passed = found["prompted"] >= gate.prompted_accuracy and found["pretraining"] >= gate.pretraining_accuracy
        if passed:
            break
    shutil.copytree(current, context.out / "model")
    shutil.rmtree(context.out / "work")
    return {
        "fingerprint": checkpoint_fingerprint(context.out / "model"),
        "gate_passed": passed,
        "gate_tries": log,
        "gate_wanted": {"prompted": gate.prompted_accuracy, "pretraining": gate.pretraining_accuracy},
    }


def _train(context: Context, texts: str, train, start: Path, extension: int) -> Path:
    out = context.out / "work" / f"{texts}-{extension}"
    out.mkdir(parents=True)
    settings = job_settings(context.settings | {"train": train, "seed": context.settings["seed"] + extension}, context.config)
    job = LanguageModelJob(texts=texts, start=str(start), domain=context.settings["train"].gate.probe, **settings)
    run_training(job, context.config.resources, context.settings["workers"], out, context.run.log)
    return out / "model"


def _ask(base: Path, probe: Path, subject: str, domain_settings, seed: int, generation: GenerationSettings) -> dict[str, float]:
    domain = load_domain(subject, domain_settings, seed)
    asked = load_corpus(domain_settings, seed).pretraining_questions()
    asked = asked[:: max(1, len(asked) // GATE_QUESTIONS)]
    return {
        "prompted": score("probe", TransformersEngine(probe), domain, domain.questions(1), generation, prompted=True).accuracy,
        "pretraining": score("pretraining", TransformersEngine(base), domain, asked, generation).accuracy,
    }
