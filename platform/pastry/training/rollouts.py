"""Completions sampled by the very model that is being trained: TRL's `rollout_func` where transformers samples."""

from __future__ import annotations

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation

CROWDED = 7 / 8
"""Finished rows are decoded on until fewer than this share of the rows is alive: moving the cache costs more than that."""


def sample_rollouts(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[list[int]] | None]:
    """One completion of every prompt, at the trainer's `temperature`, `top_p` and `max_completion_length`.

    A completion depends on the weights, the seed, the step, and its place in the batch over all processes: neither on the
    number of processes nor on the other rows, and there is no random state to save with a checkpoint.

    Args:
        prompts: this process's part of the batch; equal prompts are read once. They are tokenised as they stand.

    Returns:
        Token ids: `prompt_ids` and `completion_ids`, the latter with the end-of-sequence token unless cut off; `logprobs` is
        None, for TRL asks for those of vLLM alone.
    """
    args, accelerator = trainer.args, trainer.accelerator
    prompt_ids = trainer.processing_class(prompts, add_special_tokens=False)["input_ids"]
    uniforms = step_uniforms(
        args.seed, trainer.state.global_step, accelerator.num_processes * len(prompts), args.max_completion_length
    )
    own = slice(accelerator.process_index * len(prompts), (accelerator.process_index + 1) * len(prompts))
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped, accelerator, gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
        ) as model,
        accelerator.autocast(),
    ):
        training = model.training
        model.eval()
        completion_ids = sample(
            model, prompt_ids, uniforms[own], ends=trainer.eos_token_ids, temperature=args.temperature, top_p=args.top_p
        )
        model.train(training)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def step_uniforms(seed: int, step: int, rows: int, length: int) -> torch.Tensor:
    """The random numbers of a step, float32 [rows, length] in (0, 1]: drawn on the CPU, so that every device gets the same."""
    return 1 - torch.from_numpy(np.random.default_rng([seed, step]).random((rows, length), dtype=np.float32))


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: list[list[int]],
    uniforms: torch.Tensor,
    *,
    ends: list[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """Continue each prompt until one of the tokens `ends`, at most by uniforms.shape[1] tokens.

    Token t of row i is the inverse of the distribution's cumulative function at uniforms[i, t].

    Args:
        prompts: token ids, none empty.
        uniforms: float32 [prompts, longest completion] in (0, 1].
        ends: token ids that finish a completion and belong to it.

    Returns:
        New token ids of every prompt.
    """
    device, longest = model.device, uniforms.shape[1]
    uniforms, stops = uniforms.to(device), torch.tensor(ends, device=device)
    unique = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: index for index, prompt in enumerate(unique)}
    width = max(map(len, unique))
    ids, mask = torch.zeros(len(unique), width, dtype=torch.long), torch.ones(len(unique), width + longest, dtype=torch.long)
    for row, prompt in enumerate(unique):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    padded, ids, mask = not mask.all(), ids.to(device), mask.to(device)
    positions = mask.cumsum(1) - 1

    cache = DynamicCache(config=model.config)
    order = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    completions = torch.full((len(prompts), longest), ends[0], device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for length in range(longest):
        end = width + length
        start = 0 if length == 0 else end - 1
        logits = model(
            input_ids=ids,
            attention_mask=mask[:, :end] if padded else None,
            position_ids=positions[:, start:end].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if length == 0:
            logits, mask, positions = logits[order], mask[order], positions[order]
            cache.batch_select_indices(order)
        tokens = draw(logits, uniforms[rows, length], temperature, top_p)
        completions[rows, length] = tokens
        going = going & ~torch.isin(tokens, stops)
        alive = int(going.sum())  # the one time a token that the device is waited for
        if not alive:
            break
        if alive < CROWDED * len(rows):
            kept = going.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            rows, tokens, mask, positions, going = rows[kept], tokens[kept], mask[kept], positions[kept], going[kept]
        ids = tokens[:, None]
    finished = torch.isin(completions, stops)
    lengths = torch.where(finished.any(1), finished.int().argmax(1) + 1, longest).tolist()
    return [row[:length] for row, length in zip(completions.tolist(), lengths, strict=True)]


def draw(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Sample by the inverse of the cumulative distribution: [rows, vocabulary], (0, 1] [rows] → token ids [rows].

    The first token at which the distribution reaches the number: never one of probability 0.

    top_p: only the most probable tokens that together reach this mass (nucleus sampling, arXiv 1904.09751).
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        probabilities, tokens = probabilities.sort(dim=-1, descending=True)
        probabilities = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    cumulative = probabilities.cumsum(-1)
    found = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:])
    return (tokens.gather(-1, found) if top_p < 1 else found)[:, 0]
