"""GRPO that runs through the model only what has a gradient: TRL's trainer, its loss taken in parts."""

from __future__ import annotations

import math

import torch
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer

ROW_WISE = {"dapo", "grpo", "bnpo", "dr_grpo"}
"""Loss types that are weighted sums over completions."""
PROMPT = {"prompt_ids", "prompt_mask"}
COMPLETION = {
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
}
MOST_BUCKETS = 4
LEAST_TOKENS = 4096
"""Of a bucket: a pass over fewer costs nearly as much, and after each workers wait for one another to join metrics."""


class SelectiveGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with the same loss and gradient, at less cost.

    A completion whose advantage is 0 (all of its group were rewarded alike) has no gradient, nor has one that is masked because
    it was cut off: with `beta` = 0 neither is run through the model. The others go in up to MOST_BUCKETS buckets by length
    (under ZeRO-3 in one), each padded to its own longest prompt and completion. Processes with fewer rows than another fill
    up with rows that do not count, for all must run the same shapes; they would wait for the other anyway.

    The logged `entropy`, `kl` and `clip_ratio/…` are means over the tokens of the completions that were run; a step without any
    logs none of them. Where the loss is no sum over completions (an entropy bonus, a quantile of the entropies, a router's
    auxiliary loss, images) the batch is left to the parent as a whole.
    """

    def _compute_loss(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self._separable(inputs):
            return super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        counts = mask.any(1) if self.beta else mask.any(1) & (inputs["advantages"] != 0)
        kept = counts.nonzero()[:, 0]
        kept = kept[inputs["completion_mask"][kept].sum(1).argsort()]
        most, count = self._sizes(inputs, kept)
        rows = torch.cat([kept.new_zeros(most - len(kept)), kept])
        real = torch.arange(most, device=rows.device) >= most - len(kept)
        parts = [_bucket(inputs, *of) for of in zip(rows.tensor_split(count), real.tensor_split(count), strict=True)]
        tokens = torch.stack([(part["completion_mask"] * part.get("tool_mask", 1)).sum() for part in parts])

        share = {
            "dapo": torch.ones(count),  # divided by the tokens of the whole step already
            "bnpo": tokens / mask.sum().clamp(min=1),
        }.get(self.loss_type, torch.tensor([len(part["advantages"]) / len(mask) for part in parts]))
        log = self._metrics["train" if self.model.training else "eval"]
        loss, found = 0.0, []
        for part, weight in zip(parts, share.tolist(), strict=True):
            logged = {name: len(values) for name, values in log.items()}
            loss = loss + weight * super()._compute_loss(model, part)
            found.append({name: values.pop() for name, values in log.items() if len(values) > logged.get(name, 0)})
        for name, value in _joined(found, self.accelerator.reduce(tokens, reduction="sum").tolist()).items():
            log[name].append(value)
        return loss

    def _sizes(self, inputs: dict, kept: torch.Tensor) -> tuple[int, int]:
        """Rows and buckets of the process that has most: what the model and the metrics gather must have one shape on all."""
        tokens = inputs["prompt_mask"][kept].sum() + inputs["completion_mask"][kept].sum()
        sizes = self.accelerator.gather(torch.stack([tokens.new_tensor(len(kept)), tokens])[None])
        rows, tokens = sizes.amax(0).clamp(min=1).tolist()
        most = 1 if is_deepspeed_zero3_enabled() else MOST_BUCKETS  # there every pass gathers the weights once more
        return rows, max(1, min(most, rows, tokens // LEAST_TOKENS))

    def _separable(self, inputs: dict) -> bool:
        return (
            self.loss_type in ROW_WISE
            and not self.aux_loss_enabled
            and not self._entropy_bonus_enabled
            and self.top_entropy_quantile == 1
            and inputs.keys() <= PROMPT | COMPLETION | {"advantages", "num_items_in_batch"}
        )


def _bucket(inputs: dict[str, torch.Tensor], rows: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
    """The given rows without padding columns; those that are not real, which fill up, have no token that counts."""
    part = {name: value if value.ndim == 0 else value[rows] for name, value in inputs.items()}
    part["completion_mask"] = part["completion_mask"] * real[:, None]
    prompt, completion = (max(1, int(part[name].sum(1).max())) for name in ("prompt_mask", "completion_mask"))
    trimmed = {name: part[name][:, -prompt:] for name in PROMPT}
    return part | trimmed | {name: part[name][:, :completion] for name in COMPLETION & part.keys()}


def _joined(found: list[dict[str, float]], tokens: list[int]) -> dict[str, float]:
    """The buckets' metrics as one: extremes of extremes, means weighted by the tokens of all processes."""
    joined = {}
    for name in found[0] if sum(tokens) else ():
        values = [(each[name], count) for each, count in zip(found, tokens, strict=True) if count]
        if name.endswith(("_min", "_max")):
            joined[name] = (min if name.endswith("_min") else max)(value for value, _ in values)
        else:
            joined[name] = math.fsum(value * count for value, count in values) / sum(tokens)
    return joined
