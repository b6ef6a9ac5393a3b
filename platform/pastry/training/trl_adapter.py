"""All contact with TRL's trainers: what Pastry's settings mean in theirs."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer
from trl.chat_template_utils import supports_tool_calling
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pastry.config import LoRASettings, RLSettings, TextSettings, TrainingSettings
from pastry.domains.base import Question
from pastry.errors import PastryError
from pastry.training.grpo import SelectiveGRPOTrainer
from pastry.training.rewards import Rewards
from pastry.training.rollouts import sample_rollouts
from pastry.training.sharding import deepspeed_config


class PackedRowsCollator(DataCollatorForLanguageModeling):
    """Rows of several texts that attend only within themselves.

    Without an attention mask transformers derives block-diagonal attention from the restarting position ids; rows then
    stay short, where TRL's own padding-free batch is one row whose attention grows with the square of the batch.
    """

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        del batch["attention_mask"]
        return batch


def _common(settings: TrainingSettings, seed: int, out: str, save_every: int | None) -> dict[str, Any]:
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
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        deepspeed=deepspeed_config(settings),
        # "no" would also forbid the checkpoint before a pre-emption.
        save_strategy="steps",
        save_steps=save_every or 10**9,
        report_to="none",
        disable_tqdm=True,
        logging_first_step=True,
        ddp_find_unused_parameters=False,
        ddp_backend=None if torch.cuda.is_available() else "gloo",
        # The batch is padded per process; the loss is still the mean over the tokens of all of them.
        average_tokens_across_devices=True,
    )


def text_arguments(settings: TextSettings, *, workers: int, seed: int, out: str, save_every: int | None) -> SFTConfig:
    """TRL's arguments for next-token training. They must exist before the model is loaded: ZeRO-3 shards it while loading."""
    rows = settings.batch_rows // workers
    micro = settings.micro_rows or rows
    return SFTConfig(
        **_common(settings, seed, out, save_every),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        max_steps=settings.steps or -1,
        num_train_epochs=1,  # the rows already hold every epoch
        logging_steps=settings.log_every,
        max_length=settings.row_tokens,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_drop_last=True,
        loss_type="nll",
    )


def language_model_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    arguments: SFTConfig,
    lora: LoRASettings | None,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """TRL's SFTTrainer on packed rows, for pre-training, mid-training and document SFT alike."""
    collator = PackedRowsCollator(pad_token_id=tokenizer.pad_token_id, return_position_ids=True)
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
        peft_config=lora_config(lora),
        callbacks=callbacks,
    )


def rl_arguments(
    settings: RLSettings, *, workers: int, seed: int, out: str, save_every: int | None, weights: list[float]
) -> GRPOConfig:
    """TRL's arguments for GRPO (PaST, arXiv 2601.11258); before the model is loaded, as `text_arguments`."""
    rollouts = settings.questions_per_step * settings.group_size // workers
    micro = settings.micro_completions or rollouts
    vllm = {
        "transformers": {},
        "vllm_colocate": {"use_vllm": True, "vllm_mode": "colocate"},
        "vllm_server": {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": settings.vllm_server_url},
    }
    return GRPOConfig(
        **_common(settings, seed, out, save_every),
        **vllm[settings.rollouts],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rollouts // micro,
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
        reward_weights=weights,
        max_tool_calling_iterations=settings.max_turns,
        shuffle_dataset=False,  # the rows are in the order of training, for all its steps: a resumed run skips, not reshuffles
        logging_steps=1,
    )


def grpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: list[Question],
    rewards: Rewards,
    arguments: GRPOConfig,
    settings: RLSettings,
    callbacks: list[TrainerCallback],
) -> SelectiveGRPOTrainer:
    """TRL's GRPOTrainer on questions in training order; with an environment each is the first message of an episode.

    Raises PastryError if there is an environment and the tokenizer's chat template cannot render tools.
    """
    sampling: dict[str, Any] = {}
    if rewards.environment:
        if not supports_tool_calling(tokenizer):
            raise PastryError(
                "the domain's environment has tools, but the tokenizer's chat template does not render tools, tool calls and "
                "their answers; use a model whose template does, such as Qwen2.5-Instruct"
            )
        sampling["environment_factory"] = rewards.environment
    elif settings.rollouts == "transformers":
        sampling["rollout_func"] = sample_rollouts

    def prompt(question: Question) -> str | list[dict[str, str]]:
        return [{"role": "user", "content": question.prompt}] if rewards.environment else question.prompt

    return SelectiveGRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt(question), "question": vars(question)} for question in asked]),
        processing_class=tokenizer,
        reward_funcs=rewards.functions,
        peft_config=lora_config(settings.lora),
        callbacks=callbacks,
        **sampling,
    )


def lora_config(lora: LoRASettings | None) -> LoraConfig | None:
    """PEFT's configuration of an adapter."""
    return lora and LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
