"""A few steps of GRPO on a tiny model: what the tests of the trainer compare. Run as a file, one of the workers of torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ |= {"DS_ACCELERATOR": "cpu", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from pastry.config import RLSettings
from pastry.training import grpo
from pastry.training.rollouts import sample_rollouts
from pastry.training.sharding import deepspeed_config

GROUPS, GROUP_SIZE, LONGEST, STEPS = 4, 4, 10, 3
WORDS = ["<pad>", "<eos>", *(f"w{number}" for number in range(30))]
ZERO3 = deepspeed_config(RLSettings(parallelism="zero3"))
ZERO3["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # small weights are sharded, too


def save_tiny_model(directory: Path) -> Path:
    """A random model and its tokenizer."""
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    config = LlamaConfig(vocab_size=len(WORDS), initializer_range=0.3, tie_word_embeddings=True, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(directory)
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)
    return directory


class _Gradients(TrainerCallback):
    """The gradients of every step, as one vector each."""

    def __init__(self):
        self.steps: list[list[float]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.deepspeed is None:
            self.steps.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]).tolist())


def some_reward(completion_ids, number, **_) -> list[float]:
    """Half of the questions, the first of every batch, reward no completion."""
    return [
        float(len(ids) % 3 == 0) if index % GROUPS >= GROUPS // 2 else 0.0
        for index, ids in zip(number, completion_ids, strict=True)
    ]


def no_reward(completion_ids, **_) -> list[float]:
    return [0.0] * len(completion_ids)


def run(
    directory: Path | str,
    out: Path | str,
    selective: bool,
    *,
    workers: int = 1,
    zero3: bool = False,
    reward: Callable = some_reward,
    rollouts: Callable = sample_rollouts,
    **options,
) -> dict:
    """Train; returns `gradients` and `logs` of every step, the weights' `update`, sums of `completions`, passes' `shapes`."""
    torch.set_num_threads(1)
    grpo.LEAST_TOKENS = 24  # so that a tiny batch has several buckets
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    start = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    accumulation = options.pop("gradient_accumulation_steps", 1)
    args = GRPOConfig(
        output_dir=str(out),
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        max_steps=STEPS,
        per_device_train_batch_size=GROUPS * GROUP_SIZE // workers // accumulation,
        gradient_accumulation_steps=accumulation,
        num_generations=GROUP_SIZE,
        max_completion_length=LONGEST,
        shuffle_dataset=False,
        top_k=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        ddp_backend="gloo",
        deepspeed=ZERO3 if zero3 else None,
        seed=9,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    rows = [{"prompt": " ".join(WORDS[2 + i : 4 + i + 2 * (i % 3)]), "number": i} for i in range(GROUPS * STEPS)]
    gradients = _Gradients()
    kind = grpo.SelectiveGRPOTrainer if selective else GRPOTrainer
    trainer = kind(
        model=model,
        args=args,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[gradients],
        rollout_func=rollouts,
    )
    score, shapes, completions = trainer._get_per_token_logps_and_entropies, [], []

    def scored(model, input_ids, *args, **kwargs):
        shapes.append(list(input_ids.shape))
        return score(model, input_ids, *args, **kwargs)

    def calculated(*args, calculate=trainer._calculate_rewards):
        completions.extend(trainer.accelerator.gather(torch.tensor([sum(ids) for ids in args[3]])).tolist())
        return calculate(*args)

    trainer._get_per_token_logps_and_entropies, trainer._calculate_rewards = scored, calculated
    trainer.train()
    weights = list(trainer.model.parameters())
    with trainer._dist.gather_params(weights):
        update = (torch.cat([weight.detach().flatten() for weight in weights]) - start).tolist()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return {"gradients": gradients.steps, "update": update, "logs": logs, "completions": completions, "shapes": shapes}


if __name__ == "__main__":
    directory, scratch, options = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    found = run(directory, scratch, True, **options)
    (scratch / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
