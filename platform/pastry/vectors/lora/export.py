"""A skill vector as a PEFT LoRA adapter: per linear layer the best approximation of its v by B·A of rank r.

The truncated singular value decomposition is the best one (Eckart and Young 1936); a LoRA adapter adds s·B·A with
s = lora_alpha / r to a weight (Hu et al. 2021, arXiv 2106.09685, section 4.1). Written with lora_alpha = λ·r, so s is λ.
Other λ later: PEFT's `set_scale(adapter, λ)` on each layer or the weights of `add_weighted_adapter`, which multiply what
was written; or edit lora_alpha to λ·r in adapter_config.json, all that vLLM can do: a request has no strength of its own.

Only linear layers fit. Norms and biases have no factors; embeddings and lm_head could go into PEFT's `modules_to_save`,
but that stores whole weights instead of λ·v, is bound to one target, does not scale with λ, and vLLM refuses it.

Checked against vLLM's sources (vllm/lora/peft_helper.py, lora_model.py, utils.py; config/lora.py), not run in vLLM: it
reads r, lora_alpha, target_modules, use_rslora, use_dora, bias and modules_to_save; refuses DoRA, a bias, modules_to_save
and r above max_lora_rank (default 16, at most 512); takes one r and lora_alpha for all modules, so neither rank_pattern
nor alpha_pattern is used here; wants adapter_model.safetensors with the tensors base_model.model.MODULE.lora_A.weight and
lora_B.weight, where MODULE ends in the name of one of the model's linear layers, and casts them to the model's dtype.
Ray Serve LLM (ray.llm's sources): a folder per adapter with these two files under dynamic_lora_loading_path, which must be
s3://, gs://, abfss:// or azure://, and max_lora_rank in engine_kwargs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError
from pastry.vectors.files import atomic_directory, refuse_existing, write_json
from pastry.vectors.lora.adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from pastry.vectors.lora.factored import AnySkill, open_skill, write_safetensors
from pastry.vectors.lora.truncation import energies, leading_factors, residual
from pastry.vectors.modules import GROUPS
from pastry.vectors.rounding import derive_key
from pastry.vectors.safetensors_format import TensorSpec

REPORT_FILE = "lora.json"
LARGEST_LEFT_OUT = 0.01
_LEFT_OUT = {
    "biases": re.compile(r"bias$"),
    "norms": GROUPS["norms"],
    "embeddings": GROUPS["embeddings"],
    "experts": re.compile(r"\.experts\.|router|mlp\.gate\."),
}


class LoraReport(BaseModel):
    """lora.json: what was approximated, and how much of it the adapter holds. Energies are shares of ‖v‖²."""

    model_config = ConfigDict(extra="forbid")

    skill: str
    fingerprint: str
    """Of the skill vector."""
    rank: int
    lam: FiniteFloat
    """What lora_alpha / rank is: the strength at which the adapter is loaded."""
    energy: FiniteFloat
    """1 − ‖v − BA‖² / ‖v‖² over the whole vector; what was left out counts as missing."""
    left_out: dict[str, FiniteFloat]
    """Group of tensors that are no linear layers → its share of ‖v‖²."""
    modules: dict[str, FiniteFloat | None]
    """Linear layer → 1 − ‖v − BA‖² / ‖v‖² of its own v, with the factors as stored; None where v is zero."""


def to_lora(
    skill: Path,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    lam: float = 1.0,
    leave_out: bool = False,
    base_model: str | None = None,
    seed: int = 0,
) -> LoraReport:
    """Write the PEFT LoRA adapter nearest to the skill vector in `skill` to the new directory `out`; return its report.

    Give either `rank`, or `energy`: then the rank is the smallest that keeps this share of the whole vector's ‖v‖².
    Layers with fewer rows or columns than the rank are filled up with zeros. `base_model` becomes
    base_model_name_or_path, which PEFT's AutoPeftModel needs. Factors are float32, digests of what is read are verified.
    Matrices above truncation.EXACT_UP_TO go through a random projection of `seed`; their energy is measured all the same.
    Memory: one matrix and a square one of its smaller side, in float64.
    Raises PastryError if tensors that are no linear layers hold over LARGEST_LEFT_OUT of ‖v‖² and `leave_out` is False,
    for a zero vector, an impossible rank or energy, a λ that is not finite, weights stored transposed, an existing `out`.
    """
    if (rank is None) == (energy is None):
        raise PastryError("wanted either --rank or --energy, not both" if rank is not None else "give --rank or --energy")
    if not math.isfinite(lam):
        raise PastryError(f"λ is {lam!r}, wanted a finite number such as 0.8")
    refuse_existing(out)
    vector = open_skill(skill)
    if vector.architecture.model_type in ("gpt2", "openai-gpt"):
        raise PastryError(f"{skill}: {vector.architecture.model_type} stores its weights transposed (Conv1D); inject instead")
    left_out, linear = _sort(vector)
    squares = {name: vector.manifest.tensors[name].norm ** 2 for name in vector.tensors}
    total = math.fsum(squares.values())
    if not linear or total == 0:
        raise PastryError(f"{skill}: {'the vector is zero' if linear else 'no linear layers'}; there is nothing to export")
    shares = {group: math.fsum(squares[name] for name in names) / total for group, names in sorted(left_out.items())}
    _check_left_out(skill, shares, leave_out)
    rank = _check_rank(rank, linear) if energy is None else _rank_for(vector, linear, energy, total, sum(shares.values()))

    modules: dict[str, float | None] = {}
    missed = [squares[name] for names in left_out.values() for name in names]

    def factors() -> Iterator[np.ndarray]:
        for info in linear:
            v = _matrix(vector, info.name)
            b, a = leading_factors(v, rank, derive_key(seed, info.name))
            own, lost = residual(v, b, a)
            modules[info.name.removesuffix(".weight")] = 1 - lost / own if own else None
            missed.append(lost)
            yield a
            yield b

    with atomic_directory(out) as directory:
        specs = [spec for info in linear for spec in _factor_specs(info, rank)]
        write_safetensors(directory / WEIGHTS_FILE, specs, factors())
        write_json(directory / CONFIG_FILE, _adapter_config(linear, vector, rank, lam, base_model))
        report = LoraReport(
            skill=vector.manifest.name,
            fingerprint=vector.manifest.fingerprint,
            rank=rank,
            lam=lam,
            energy=1 - math.fsum(missed) / total,
            left_out=shares,
            modules=modules,
        )
        write_json(directory / REPORT_FILE, report.model_dump(mode="json"))
    return report


def _sort(vector: AnySkill) -> tuple[dict[str, list[str]], list[TensorSpec]]:
    left_out: dict[str, list[str]] = {}
    linear = []
    for name, info in sorted(vector.tensors.items()):
        group = next((group for group, form in _LEFT_OUT.items() if form.search(name)), None)
        if group is None and len(info.shape) == 2 and name.endswith(".weight"):
            linear.append(info)
        else:
            left_out.setdefault(group or "other", []).append(name)
    return left_out, linear


def _check_left_out(skill: Path, shares: dict[str, float], leave_out: bool) -> None:
    share = sum(shares.values())
    if share > LARGEST_LEFT_OUT and not leave_out:
        groups = ", ".join(f"{group} {part:.2%}" for group, part in shares.items())
        raise PastryError(
            f"{skill}: {share:.2%} of the vector's energy is not in linear layers ({groups}), and a LoRA adapter cannot hold "
            "it; give --leave-out to export without it, or write a checkpoint with `pastry vector inject`"
        )


def _check_rank(rank: int, linear: list[TensorSpec]) -> int:
    largest = max(min(info.shape) for info in linear)
    if not 1 <= rank <= largest:
        raise PastryError(f"rank is {rank}, wanted 1 to {largest}, the largest rank that a layer of this model can have")
    return rank


def _rank_for(vector: AnySkill, linear: list[TensorSpec], energy: float, total: float, left_out: float) -> int:
    if not 0 < energy <= 1 - left_out:
        raise PastryError(f"energy is {energy}, wanted above 0 and at most {1 - left_out:.6f}, which the linear layers hold")
    kept = np.zeros(max(min(info.shape) for info in linear))
    for info in linear:
        own = energies(_matrix(vector, info.name))
        kept[: own.size] += own
    # At the last rank all is kept, whatever the sum's rounding says.
    return min(int(np.searchsorted(np.cumsum(kept), energy * total)) + 1, kept.size)


def _matrix(vector: AnySkill, name: str) -> np.ndarray:
    return vector.read(name).float().numpy()


def _factor_specs(info: TensorSpec, rank: int) -> list[TensorSpec]:
    stem = PREFIX + info.name.removesuffix(".weight")
    return [
        TensorSpec(f"{stem}.lora_A.weight", "float32", (rank, info.shape[1])),
        TensorSpec(f"{stem}.lora_B.weight", "float32", (info.shape[0], rank)),
    ]


def _adapter_config(
    linear: list[TensorSpec], vector: AnySkill, rank: int, lam: float, base_model: str | None
) -> dict[str, object]:
    alpha = lam * rank
    modules = [info.name.removesuffix(".weight") for info in linear]
    targets = {module.rpartition(".")[2] for module in modules}
    others = {name.removesuffix(".weight") for name in vector.tensors if name.endswith(".weight")} - set(modules)
    # A layer's last name stands for all layers that end in it; whole names where that would take in one left out.
    if targets & {module.rpartition(".")[2] for module in others}:
        targets = set(modules)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": sorted(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
