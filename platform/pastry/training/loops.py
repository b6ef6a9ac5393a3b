"""What a Ray Train worker runs: load, train (or go on where the last checkpoint was), write the float32 masters."""

from __future__ import annotations

import random
import tempfile
from contextlib import closing
from pathlib import Path

import ray.train
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainerCallback, set_seed

from pastry.config import ModelShape, TrainingSettings
from pastry.domains import load_domain, load_epoch
from pastry.domains.base import Question
from pastry.training import trl_adapter
from pastry.training.callbacks import KeepStart, Progress, Samples
from pastry.training.checkpoints import Checkpoints
from pastry.training.data import packed_epochs
from pastry.training.geometry import Geometry
from pastry.training.job import LanguageModelJob, RLJob
from pastry.training.masters import save_adapter, save_model
from pastry.training.meter import Meter
from pastry.training.rewards import Rewards
from pastry.vectors.checkpoint import Checkpoint


def _new_model(shape: ModelShape, tokenizer, seed: int) -> PreTrainedModel:
    set_seed(seed)
    settings = shape.model_dump(exclude={"model_type"})
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(shape.model_type, vocab_size=len(tokenizer), **settings, **tokens)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _load(directory: str, settings: TrainingSettings) -> PreTrainedModel:
    if settings.parallelism.startswith("zero3"):
        import deepspeed

        # transformers shards while loading, and would take this worker for the only one.
        deepspeed.init_distributed(auto_mpi_discovery=False)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _train(trainer: Trainer, checkpoints: Checkpoints, job: LanguageModelJob | RLJob, tokenizer) -> None:
    if resume := ray.train.get_checkpoint():
        with resume.as_directory() as directory:
            trainer.train(resume_from_checkpoint=directory)
    else:
        trainer.train()
    if checkpoints.stopped:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if job.settings.lora:
        save_adapter(model, job.out / "adapter")
    else:
        save_model(model, tokenizer, job.out / "model")


def _callbacks(
    job: LanguageModelJob | RLJob, tokenizer, *, keep_start: bool, tokens_per_step: float | None = None
) -> tuple[Checkpoints, list[TrainerCallback]]:
    checkpoints = Checkpoints(job.stop, job.watch_nodes)
    callbacks: list[TrainerCallback] = [checkpoints]
    if job.start:
        start = Checkpoint(Path(job.start))
        callbacks.append(KeepStart(start, job.work / "start" if keep_start else None, tokenizer))
        callbacks.append(Geometry(start, job.base and Checkpoint(job.base), job.geometry_every))
    return checkpoints, [*callbacks, Meter(tokens_per_step), Progress(job.progress)]


def language_model_loop(job: LanguageModelJob) -> None:
    """Next-token training from scratch or from a checkpoint. Writes `model/` (or `adapter/`) into the job's directory."""
    torch.set_num_threads(job.threads)
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.start or job.tokenizer)
    new = None if job.start else _new_model(job.shape, tokenizer, job.seed)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl_adapter.text_arguments(
            settings,
            workers=ray.train.get_context().get_world_size(),
            seed=job.seed,
            out=scratch,
            save_every=job.checkpoint_every,
        )
        rows = packed_epochs(
            load_epoch(job.texts, job.domain_settings, job.world_seed, name=job.domain, part=job.part, mixture=job.mixture),
            tokenizer,
            length=settings.row_tokens,
            overlap=settings.overlap_tokens,
            rows=settings.steps * settings.batch_rows if settings.steps else None,
            epochs=settings.epochs,
            seed=job.seed,
        )
        tokens_per_step = settings.batch_rows * sum(map(len, rows["input_ids"])) / len(rows)
        checkpoints, callbacks = _callbacks(job, tokenizer, keep_start=False, tokens_per_step=tokens_per_step)
        trainer = trl_adapter.language_model_trainer(
            new or _load(job.start, settings), tokenizer, rows, arguments, settings.lora, callbacks
        )
        _train(trainer, checkpoints, job, tokenizer)


def rl_loop(job: RLJob) -> None:
    """GRPO on a domain's questions. Writes `start/`, the masters of step 0, into the job's `work`, `model/` into its `out`."""
    torch.set_num_threads(job.threads)
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.start, padding_side="left")
    domain = load_domain(job.domain, job.domain_settings, job.world_seed)
    rewards = Rewards(
        domain,
        settings.rewards,
        group_size=settings.group_size,
        eos={tokenizer.eos_token_id},
        cache=job.work / "judge.db",
    )
    with tempfile.TemporaryDirectory() as scratch, closing(rewards):
        arguments = trl_adapter.rl_arguments(
            settings,
            workers=ray.train.get_context().get_world_size(),
            seed=job.seed,
            out=scratch,
            save_every=job.checkpoint_every,
            weights=rewards.weights,
        )
        asked = in_training_order(domain.questions(job.part), settings.steps * settings.questions_per_step, job.seed)
        checkpoints, callbacks = _callbacks(job, tokenizer, keep_start=not settings.lora)
        trainer = trl_adapter.grpo_trainer(
            _load(job.start, settings),
            tokenizer,
            asked,
            rewards,
            arguments,
            settings,
            [*callbacks, Samples(job.progress, rewards, job.samples_every)],
        )
        _train(trainer, checkpoints, job, tokenizer)


def in_training_order(questions: list[Question], count: int, seed: int) -> list[Question]:
    """`count` questions: pass after pass over all of them, each shuffled anew."""
    rng = random.Random(seed)
    ordered: list[Question] = []
    while len(ordered) < count:
        ordered += rng.sample(questions, len(questions))
    return ordered[:count]
