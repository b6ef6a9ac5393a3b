"""All contact with TRL's trainers: what Pastry's settings mean in theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pastry.config import OptimizerSettings, RLSettings, TextSettings
from pastry.domains.base import Domain, Question, Verdict


class PackedRowsCollator(DataCollatorForLanguageModeling):
    """Rows of several texts that attend only within themselves.

    Without an attention mask transformers derives block-diagonal attention from the restarting position ids; rows then
    stay short, where TRL's own padding-free batch is one row whose attention grows with the square of the batch.
    """

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        del batch["attention_mask"]
        return batch


def _common(settings: OptimizerSettings, seed: int, out: str) -> dict:
    schedule = {
        "constant": ("constant_with_warmup", {}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": settings.min_lr_ratio}),
    }
    scheduler, scheduler_options = schedule[settings.schedule]
    return dict(
        output_dir=out,
        learning_rate=settings.lr,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type=scheduler,
        lr_scheduler_kwargs=scheduler_options,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_first_step=True,
        ddp_find_unused_parameters=False,
        ddp_backend=None if torch.cuda.is_available() else "gloo",
        # The batch is padded per process; the loss is still the mean over the tokens of all of them.
        average_tokens_across_devices=True,
    )


def language_model_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    settings: TextSettings,
    *,
    workers: int,
    seed: int,
    out: str,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """TRL's SFTTrainer on packed rows, for pre-training and document SFT alike."""
    config = SFTConfig(
        **_common(settings, seed, out),
        per_device_train_batch_size=settings.batch_rows // workers,
        max_steps=settings.steps or -1,
        num_train_epochs=1,  # the rows already hold every epoch
        logging_steps=settings.log_every,
        max_length=settings.row_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_drop_last=True,
        loss_type="nll",
    )
    collator = PackedRowsCollator(pad_token_id=tokenizer.pad_token_id, return_position_ids=True)
    return SFTTrainer(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer, data_collator=collator, callbacks=callbacks
    )


def _reward(domain: Domain, score: Callable[[Verdict], float], name: str, eos: set[int]):
    def reward(completions, completion_ids, question, **_):
        verdicts = (
            domain.verify(Question(**asked), text, bool(ids) and ids[-1] in eos)
            for asked, text, ids in zip(question, completions, completion_ids, strict=True)
        )
        return [score(verdict) for verdict in verdicts]

    reward.__name__ = name
    return reward


def grpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    questions: list[Question],
    settings: RLSettings,
    *,
    workers: int,
    seed: int,
    out: str,
    callbacks: list[TrainerCallback],
) -> GRPOTrainer:
    """TRL's GRPOTrainer (PaST, arXiv 2601.11258: GRPO with a binary correctness reward).

    The verifier's other findings ride along as rewards of weight 0, so that TRL logs their curves.
    """
    rollouts = settings.questions_per_step * settings.group_size
    config = GRPOConfig(
        **_common(settings, seed, out),
        per_device_train_batch_size=rollouts // workers,
        num_generations=settings.group_size,
        max_steps=settings.steps,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        beta=settings.kl,
        epsilon=settings.clip_range,
        loss_type=settings.loss,
        mask_truncated_completions=settings.mask_truncated,
        reward_weights=[1.0] + [0.0] * (1 + len(domain.modes)),
        logging_steps=1,
    )
    eos = {tokenizer.eos_token_id}
    rewards = [
        _reward(domain, lambda verdict: float(verdict.correct), "correct", eos),
        _reward(domain, lambda verdict: float(verdict.well_formed), "well_formed", eos),
        *(_reward(domain, lambda verdict, mode=mode: float(verdict.mode == mode), mode, eos) for mode in domain.modes),
    ]
    rows = Dataset.from_list([{"prompt": q.prompt, "question": vars(q)} for q in questions])
    return GRPOTrainer(
        model=model, args=config, train_dataset=rows, processing_class=tokenizer, reward_funcs=rewards, callbacks=callbacks
    )
