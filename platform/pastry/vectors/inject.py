"""Put skills into a model: θ = θ_target + Σ λ_i·v_i, in float32, rounded once, with what arrived measured.

PAPERS: PaST, Parametric Skill Transfer, arXiv 2601.11258.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.files import atomic_directory, refuse_existing, write_json
from pastry.vectors.fingerprint import fingerprint, tensor_digest
from pastry.vectors.rounding import add, float_dtype, round_nearest, round_stochastic, to_float32
from pastry.vectors.shards import write_shards
from pastry.vectors.skill import Skill
from pastry.vectors.sums import dot

REPORT_FILE = "inject.json"
NEAREST_IS_ENOUGH = 0.99
COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)

Rounding = Literal["nearest", "stochastic"]


class Arrived(BaseModel):
    """What arrived of d = Σ λ_i·v_i, in float64; None where d is zero."""

    model_config = ConfigDict(extra="forbid")

    realised_ratio: FiniteFloat | None
    """⟨θ_final − θ_target, d⟩ / ⟨d, d⟩; 1.0 is perfect."""
    relative_error: FiniteFloat | None
    """‖θ_final − θ_target − d‖ / ‖d‖."""


class InjectedTensor(Arrived):
    dtype: str
    rounding: Rounding


class InjectedSkill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    path: str
    fingerprint: str
    lam: FiniteFloat


class InjectReport(Arrived):
    """inject.json: what was injected into what, and how much of it arrived."""

    target: str
    target_fingerprint: str
    fingerprint: str
    """Of the checkpoint that was written."""
    skills: list[InjectedSkill]
    dtype: str
    """Of the output; "mixed" where its tensors differ."""
    rounding: Rounding
    """Of the bfloat16 tensors; the others are always rounded to nearest."""
    nearest_realised_ratio: FiniteFloat | None
    """What round-to-nearest would have realised; None unless `auto` had to find out."""
    seed: int
    tensors: dict[str, InjectedTensor]


@dataclass
class Tally:
    """Inner products of what moved and of what should have, added up over tensors."""

    moved_d: float = 0.0
    d_d: float = 0.0
    missed: float = 0.0

    def add(self, other: "Tally") -> None:
        self.moved_d += other.moved_d
        self.d_d += other.d_d
        self.missed += other.missed

    def arrived(self) -> Arrived:
        if self.d_d == 0:
            return Arrived(realised_ratio=None, relative_error=None)
        return Arrived(realised_ratio=self.moved_d / self.d_d, relative_error=math.sqrt(self.missed / self.d_d))


def inject(
    target: Path,
    skills: list[tuple[Path, float]],
    out: Path,
    *,
    dtype: str | None = None,
    rounding: Literal["auto", "nearest", "stochastic"] = "auto",
    seed: int = 0,
) -> InjectReport:
    """Write target + Σ λ·skill to the new directory `out`, an ordinary Hugging Face checkpoint, and return its report.

    `skills` are (skill vector directory, λ). `dtype` None keeps each tensor's own. `rounding` "auto" rounds bfloat16
    outputs stochastically where round-to-nearest would realise less than 99 %; that costs a pass over the inputs.
    Same inputs and `seed`, same weights. Memory: one shard and a few tensors.
    Raises PastryError for a λ that is not finite, incompatible or damaged inputs, overflow, an existing `out`.
    """
    if rounding not in ("auto", "nearest", "stochastic"):
        raise PastryError(f"rounding {rounding!r} is unknown; wanted auto, nearest or stochastic")
    _check_skills(skills)
    weights = Checkpoint(target)
    vectors = [(Skill(path), lam) for path, lam in skills]
    for vector, _ in vectors:
        check_same_architecture(weights, vector)
    dtypes = {name: dtype or info.dtype for name, info in weights.tensors.items()}
    sizes = {name: info.elements * float_dtype(dtypes[name]).itemsize for name, info in weights.tensors.items()}
    has_bfloat16 = "bfloat16" in dtypes.values()
    if rounding == "stochastic" and not has_bfloat16:
        raise PastryError(
            f"--rounding stochastic is for bfloat16 outputs, this one is {_common(dtypes)}; "
            "use --dtype bfloat16 or --rounding nearest"
        )
    # Asked here as well as when writing begins: the first pass may take long.
    refuse_existing(out)

    def round_to(theta: torch.Tensor, name: str, how: Rounding) -> torch.Tensor:
        where = f"target + Σ λ·v in tensor {name}"
        if how == "stochastic":
            return round_stochastic(theta, name, seed, where)
        return round_nearest(theta, float_dtype(dtypes[name]), where)

    nearest_ratio = None
    if rounding == "auto":
        rounding = "nearest"
        if has_bfloat16:
            nearest = Tally()
            for name in sorted(weights.tensors):
                theta_target, d = _read(weights.read(name), weights, vectors, name)
                nearest.add(_measure(round_to(add(theta_target, d), name, "nearest"), theta_target, d))
            nearest_ratio = nearest.arrived().realised_ratio
            if nearest_ratio is not None and nearest_ratio < NEAREST_IS_ENOUGH:
                rounding = "stochastic"

    digests: dict[str, dict[str, str]] = {"target": {}, "out": {}}
    whole = Tally()
    tensors: dict[str, InjectedTensor] = {}

    def combine(name: str) -> torch.Tensor:
        raw = weights.read(name)
        theta_target, d = _read(raw, weights, vectors, name)
        how = rounding if dtypes[name] == "bfloat16" else "nearest"
        final = round_to(add(theta_target, d), name, how)
        tally = _measure(final, theta_target, d)
        whole.add(tally)
        tensors[name] = InjectedTensor(**tally.arrived().model_dump(), dtype=dtypes[name], rounding=how)
        digests["target"][name], digests["out"][name] = tensor_digest(raw), tensor_digest(final)
        return final

    with atomic_directory(out) as tmp:
        write_shards(tmp, "model", sizes, combine)
        _copy_companions(weights, tmp, dtype)
        report = InjectReport(
            **whole.arrived().model_dump(),
            target=str(target),
            target_fingerprint=fingerprint(digests["target"]),
            fingerprint=fingerprint(digests["out"]),
            skills=[
                InjectedSkill(name=v.manifest.name, path=str(v.path), fingerprint=v.manifest.fingerprint, lam=lam)
                for v, lam in vectors
            ],
            dtype=_common(dtypes),
            rounding=rounding,
            nearest_realised_ratio=nearest_ratio,
            seed=seed,
            tensors=tensors,
        )
        write_json(tmp / REPORT_FILE, report.model_dump(mode="json"))
    return report


def _check_skills(skills: list[tuple[Path, float]]) -> None:
    if not skills:
        raise PastryError("no skill vector to inject; give at least one --skill")
    for path, lam in skills:
        if isinstance(lam, bool) or not isinstance(lam, (int, float)) or not math.isfinite(lam):
            raise PastryError(f"λ of {path} is {lam!r}, wanted a finite number such as 0.8")


def _read(
    raw: torch.Tensor, weights: Checkpoint, vectors: list[tuple[Skill, float]], name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """θ_target (stored as `raw`) and d = Σ λ_i·v_i of one tensor, both float32."""
    theta_target = to_float32(raw, f"{weights.path}: tensor {name}")
    d = torch.zeros_like(theta_target)
    for vector, lam in vectors:
        d.add_(to_float32(vector.read(name), f"{vector.path}: tensor {name}").mul(lam))
    return theta_target, d


def _measure(final: torch.Tensor, theta_target: torch.Tensor, d: torch.Tensor) -> Tally:
    moved = final.float() - theta_target
    missed = moved - d
    return Tally(dot(moved, d), dot(d, d), dot(missed, missed))


def _copy_companions(weights: Checkpoint, directory: Path, dtype: str | None) -> None:
    for file in COPIED_FILES:
        if (weights.path / file).is_file():
            shutil.copyfile(weights.path / file, directory / file)
    if dtype is not None:
        # transformers loads in the dtype that config.json states, which would undo the choice made here.
        config = weights.config
        for part in (config, config.get("text_config")):
            if isinstance(part, dict):
                part.update({key: dtype for key in ("dtype", "torch_dtype") if key in part})
        write_json(directory / "config.json", config)


def _common(dtypes: dict[str, str]) -> str:
    found = set(dtypes.values())
    return found.pop() if len(found) == 1 else "mixed"
