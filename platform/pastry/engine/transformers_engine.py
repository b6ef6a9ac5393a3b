"""The default engine: transformers' `generate` on one device, skill vectors added to the weights in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from pastry.errors import PastryError
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.modules import Lambda, per_tensor


@dataclass(frozen=True)
class Completion:
    """One generated continuation."""

    text: str
    finished: bool
    """The model ended the sequence itself; False: it was cut off at max_new_tokens."""
    prompt_tokens: int
    tokens: int
    """Generated tokens, the end-of-sequence token included."""


class TransformersEngine:
    """θ = θ_target + Σ λ_i v_i in memory, always computed from θ_target.

    Args:
        target: checkpoint directory.
        skills: name → skill vector directory; each is read once and kept in float32 on the model's device.
        dtype: of the weights in memory; the sum is taken in float32 and cast once.

    Raises:
        PastryError: a skill has a tensor the model lacks, or of another shape.
    """

    def __init__(self, target: Path | str, skills: Mapping[str, Path | str] | None = None, dtype: torch.dtype = torch.float32):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(target, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).to(self.device).eval()
        self.attached: dict[str, Lambda] = {}
        self._weights = dict(self.model.named_parameters())
        self._target: dict[str, torch.Tensor] = {}
        self._vectors: dict[str, dict[str, torch.Tensor]] = {}
        for name, path in (skills or {}).items():
            self.add_skill(name, path)

    def add_skill(self, name: str, path: Path | str) -> None:
        """Hold a skill vector ready under a name; its λ stays 0 until `attach`."""
        skill = open_skill(path)
        vector = {}
        for tensor, info in skill.tensors.items():
            if tensor not in self._weights:
                raise PastryError(f"{path}: tensor '{tensor}' of skill '{name}' is not in the target model")
            if tuple(info.shape) != tuple(self._weights[tensor].shape):
                raise PastryError(
                    f"{path}: tensor '{tensor}' has shape {tuple(info.shape)}, "
                    f"the target's has {tuple(self._weights[tensor].shape)}"
                )
            vector[tensor] = skill.read(tensor).float().to(self.device)
            if tensor not in self._target:  # θ_target of what some skill touches, and of nothing else
                self._target[tensor] = self._weights[tensor].detach().clone()
        self._vectors[name] = vector

    def drop_skill(self, name: str) -> None:
        """Forget a skill; if it was attached, the next `attach` takes it out of the weights."""
        del self._vectors[name]

    @torch.no_grad()
    def attach(self, lambdas: Mapping[str, Lambda]) -> None:
        """Set every skill's λ, for the whole of it or by module group; a skill not named gets 0. One pass over the weights."""
        for name in lambdas:
            if name not in self._vectors:
                raise PastryError(f"skill '{name}' is not loaded; loaded: {', '.join(self._vectors) or 'none'}")
        wanted = {name: lam for name, lam in lambdas.items() if lam}
        if wanted == self.attached:
            return
        scales = {name: per_tensor(lam, self._vectors[name], f"λ of skill '{name}'") for name, lam in wanted.items()}
        for tensor, start in self._target.items():
            total = start.float()
            for name, scale in scales.items():
                if tensor in self._vectors[name]:
                    total = total + scale[tensor] * self._vectors[name][tensor]
            self._weights[tensor].copy_(total)
        self.attached = wanted

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch: int = 256,
    ) -> list[Completion]:
        """Continue each prompt; temperature 0 is greedy. Same prompts and seed, same completions on the same hardware.

        Prompts are tokenised as they stand, special tokens included in their text.
        """
        sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            torch.manual_seed(seed)
        ends = torch.tensor(self.tokenizer.eos_token_id, device=self.device)
        completions = []
        for start in range(0, len(prompts), batch):
            inputs = self.tokenizer(
                list(prompts[start : start + batch]), return_tensors="pt", padding=True, add_special_tokens=False
            ).to(self.device)
            inputs.pop("token_type_ids", None)
            width = inputs["input_ids"].shape[1]
            output = self.model.generate(
                **inputs, **sampling, max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id
            )[:, width:]
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            for tokens, prompt_tokens in zip(output, lengths, strict=True):
                stops = (tokens == ends).nonzero()
                finished = len(stops) > 0
                tokens = tokens[: int(stops[0]) + 1] if finished else tokens
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                completions.append(Completion(text, finished, prompt_tokens, len(tokens)))
        return completions

    def perplexity(self, texts: Sequence[str]) -> float:
        """exp of the mean negative log-likelihood per token (the first token of each text is given)."""
        total, tokens = map(sum, zip(*self.losses(texts), strict=True))
        return math.exp(total / tokens)

    @torch.inference_mode()
    def losses(self, texts: Sequence[str], batch: int = 32) -> list[tuple[float, int]]:
        """Of each text its summed negative log-likelihood and the number of its tokens, without the first, which is given."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        found = []
        for start in range(0, len(ids), batch):
            rows = [torch.tensor(row, device=self.device) for row in ids[start : start + batch]]
            # Padded on the right, where causality hides it; a label of −100 counts as nothing.
            inputs, labels = (pad_sequence(rows, batch_first=True, padding_value=value) for value in (0, -100))
            logits = self.model(input_ids=inputs).logits[:, :-1].float()
            each = cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(dim=1)
            found += [(float(loss), len(row) - 1) for loss, row in zip(each, rows, strict=True)]
        return found
