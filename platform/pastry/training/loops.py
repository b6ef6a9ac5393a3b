"""What a Ray Train worker runs: load, train, report the weights as a checkpoint."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import ray.train
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback, set_seed

from pastry.config import ModelShape
from pastry.domains import load_corpus, load_domain
from pastry.training import trl_adapter
from pastry.training.data import packed_epochs
from pastry.training.job import LanguageModelJob, RLJob


class _Progress(TrainerCallback):
    """Sends every log line of the first worker to the driver."""

    def __init__(self, queue):
        self.queue, self.started = queue, time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if ray.train.get_context().get_world_rank() == 0 and logs and "train_runtime" not in logs:
            numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
            self.queue.put(
                {"step": state.global_step, "steps": state.max_steps, "seconds": time.monotonic() - self.started, **numbers}
            )


def _new_model(shape: ModelShape, tokenizer, seed: int) -> PreTrainedModel:
    set_seed(seed)
    settings = shape.model_dump(exclude={"model_type"})
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(shape.model_type, vocab_size=len(tokenizer), **settings, **tokens)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _load(directory: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _save(model: PreTrainedModel, tokenizer, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _report(directory: str, metrics: dict) -> None:
    first = ray.train.get_context().get_world_rank() == 0
    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory) if first else None)


def language_model_loop(job: LanguageModelJob) -> None:
    """Next-token training: pre-training from scratch or document SFT. Checkpoint: `model/`."""
    torch.set_num_threads(job.threads)
    workers = ray.train.get_context().get_world_size()
    tokenizer = AutoTokenizer.from_pretrained(job.start or job.tokenizer)
    model = _load(job.start) if job.start else _new_model(job.shape, tokenizer, job.seed)
    if job.texts == "pretraining":
        epoch = load_corpus(job.domain_settings, job.world_seed).pretraining_epoch
    else:
        domain = load_domain(job.domain, job.domain_settings, job.world_seed)
        draw = {"documents": domain.sft_epoch, "answers": domain.answers_epoch}[job.texts]

        def epoch(rng):
            return draw(job.part, rng)

    settings = job.settings
    rows = packed_epochs(
        epoch,
        tokenizer,
        length=settings.row_tokens,
        rows=settings.steps * settings.batch_rows if settings.steps else None,
        epochs=settings.epochs,
        seed=job.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl_adapter.language_model_trainer(
            model, tokenizer, rows, settings, workers=workers, seed=job.seed, out=scratch, callbacks=[_Progress(job.progress)]
        )
        trainer.train()
        _save(model, tokenizer, Path(scratch, "out", "model"))
        _report(str(Path(scratch, "out")), {"tokens": sum(map(len, rows["input_ids"]))})


def rl_loop(job: RLJob) -> None:
    """GRPO on a domain's questions. Checkpoint: `start/`, the weights of step 0 as they are in memory, and `model/`."""
    torch.set_num_threads(job.threads)
    workers = ray.train.get_context().get_world_size()
    tokenizer = AutoTokenizer.from_pretrained(job.start, padding_side="left")
    model = _load(job.start)
    domain = load_domain(job.domain, job.domain_settings, job.world_seed)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "out")
        _save(model, tokenizer, out / "start")
        trainer = trl_adapter.grpo_trainer(
            model,
            tokenizer,
            domain,
            domain.questions(job.part, job.split),
            job.settings,
            workers=workers,
            seed=job.seed,
            out=scratch,
            callbacks=[_Progress(job.progress)],
        )
        trainer.train()
        _save(model, tokenizer, out / "model")
        _report(str(out), {"questions": len(trainer.train_dataset)})
