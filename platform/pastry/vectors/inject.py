"""Put skills into a model: θ = θ_target + Σ λ_i·v_i, in float32, rounded once, with what arrived measured.

PAPERS: PaST, Parametric Skill Transfer, arXiv 2601.11258.
"""

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError
from pastry.vectors import kernels
from pastry.vectors.architecture import BASE_FILE
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.files import refuse_existing, write_json
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.lora.factored import AnySkill, open_skill
from pastry.vectors.modules import Lambda, ModuleLambdas, per_tensor
from pastry.vectors.rounding import FLOAT_DTYPES, Scratch, check_float_dtype, derive_key, overflow_advice, round_to, widen
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import MAX_SHARD_BYTES, Progress, Spread, plan_shards, sharded_output
from pastry.vectors.vocabulary import IntersectedSkill, SharedRows

REPORT_FILE = "inject.json"
NEAREST_IS_ENOUGH = 0.99
COPIED_FILES = (
    "config.json",
    BASE_FILE,
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

Rounding = Literal["auto", "nearest", "stochastic"]
Vocabulary = Literal["same", "intersect"]
Rounded = Literal["nearest", "stochastic", "mixed"]


class Arrived(BaseModel):
    """What arrived of d = Σ λ_i·v_i, in float64; None where d is zero."""

    model_config = ConfigDict(extra="forbid")

    realised_ratio: FiniteFloat | None
    """⟨θ_final − θ_target, d⟩ / ⟨d, d⟩; 1.0 is perfect."""
    relative_error: FiniteFloat | None
    """‖θ_final − θ_target − d‖ / ‖d‖."""


class InjectedTensor(Arrived):
    digest: str
    dtype: str
    rounding: Rounded


class InjectedSkill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    path: str
    fingerprint: str
    lam: FiniteFloat | str
    """A number, or the rules for module groups as they were written."""
    shared_rows: SharedRows | None = None
    """With --vocab intersect: what became of the rows of the embeddings."""


class InjectReport(Arrived):
    """inject.json: what was injected into what, and how much of it arrived."""

    target: str
    target_fingerprint: str
    fingerprint: str
    """Of the checkpoint that was written."""
    skills: list[InjectedSkill]
    dtype: str
    """Of the output; "mixed" where its tensors differ."""
    rounding: Rounded
    """"mixed" where `auto` chose both."""
    nearest_realised_ratio: FiniteFloat | None
    """What round-to-nearest would have realised everywhere; None where it was not tried."""
    seed: int
    tensors: dict[str, InjectedTensor]


class InjectWork:
    """θ_target + Σ λ·v of each block, rounded, with what arrived."""

    def __init__(
        self, target: Path, skills: list[tuple[Path, dict[str, float]]], rounding: Rounding, seed: int, vocab: Vocabulary
    ):
        self.target = Checkpoint(target)
        self.skills = [(_open(path, self.target, vocab), lambdas) for path, lambdas in skills]
        self.rounding, self.seed = rounding, seed

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch) -> tuple[np.ndarray, dict[str, Any]]:
        n = stop - start
        theta, target_stored = self.target.widened_block(spec.name, start, stop, scratch)
        # −d = 0 − Σ λ·v. θ − (−d) leaves a −0.0 of θ as it is where d is zero: −0.0 + 0.0 would be 0.0.
        minus_d = scratch("minus d", np.float32, n)
        minus_d.fill(0)
        skill_digests = []
        for skill, lambdas in self.skills:
            v, stored = skill.widened_block(spec.name, start, stop, scratch)
            skill_digests.append(block_digest(stored))
            kernels.subtract_scaled(minus_d, v, np.float32(lambdas[spec.name]))
        out = scratch("out", FLOAT_DTYPES[spec.dtype], n)

        def add(key: int | None) -> tuple[float, float, float]:
            if spec.dtype == "bfloat16" and key is None:
                sums, overflow = kernels.subtract_to_nearest_bfloat16(theta, minus_d, out)
                if not overflow:
                    return sums
            round_to(np.subtract(theta, minus_d, out=scratch("sum", np.float32, n)), out, start, key)
            where = f"target + Σ λ·v in tensor {spec.name}"
            after = widen(out, scratch("after", np.float32, n), where, spec.shape, start, overflow_advice(spec.dtype))
            return kernels.arrived(theta, minus_d, after)

        key = derive_key(self.seed, spec.name)
        stochastic = self.rounding == "stochastic" and spec.dtype == "bfloat16"
        sums = nearest = add(key if stochastic else None)
        moved_d, d_d, _ = nearest
        if self.rounding == "auto" and spec.dtype == "bfloat16" and moved_d < NEAREST_IS_ENOUGH * d_d:
            sums, stochastic = add(key), True
        digests = {"target": block_digest(target_stored), "out": block_digest(out), "skills": skill_digests}
        return out, {"sums": sums, "nearest": nearest, "stochastic": stochastic, "digests": digests}

    def record(self, spec: TensorSpec, facts: list[dict[str, Any]]) -> dict[str, Any]:
        for i, (skill, _) in enumerate(self.skills):
            skill.check_digest(spec.name, (block["digests"]["skills"][i] for block in facts))
        target = self.target.tensors[spec.name]
        return {
            "target": tensor_digest(target, (block["digests"]["target"] for block in facts)),
            "out": tensor_digest(spec, (block["digests"]["out"] for block in facts)),
            "sums": [math.fsum(block["sums"][i] for block in facts) for i in range(3)],
            "nearest": [math.fsum(block["nearest"][i] for block in facts) for i in range(3)],
            "dtype": spec.dtype,
            "rounding": _common("stochastic" if block["stochastic"] else "nearest" for block in facts),
        }


def inject(
    target: Path,
    skills: list[tuple[Path, Lambda]],
    out: Path,
    *,
    dtype: str | None = None,
    rounding: Rounding = "auto",
    seed: int = 0,
    vocab: Vocabulary = "same",
    other_base: bool = False,
    dry_run: bool = False,
    spread: Spread | None = None,
    progress: Progress | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> InjectReport | None:
    """Write target + Σ λ·skill to the new directory `out`, an ordinary Hugging Face checkpoint, and return its report.

    `skills` are (skill vector directory, λ). `dtype` None keeps each tensor's own. `rounding` "auto" rounds a block of a
    bfloat16 output stochastically where round-to-nearest would realise less than 99 % of it. The weights depend on the
    inputs and `seed` alone. `vocab` "intersect" adds to the embedding rows of the tokens that target and skill share;
    `other_base` lets a vector be tried on models of another base. `dry_run` only checks, and returns None.
    Memory: some blocks a thread, whatever the model's size.
    Raises PastryError for a λ that is not finite, incompatible or damaged inputs, overflow, an existing `out`.
    """
    for option, value, known in (("rounding", rounding, Rounding), ("vocab", vocab, Vocabulary)):
        if value not in get_args(known):
            raise PastryError(f"{option} {value!r} is unknown; wanted {', '.join(get_args(known))}")
    if not skills:
        raise PastryError("no skill vector to inject; give at least one --skill")
    weights = Checkpoint(target)
    vectors = [(_open(path, weights, vocab), lam) for path, lam in skills]
    for vector, _ in vectors:
        check_same_architecture(weights, vector, base=not other_base)
    if dtype is not None:
        check_float_dtype(dtype)
    specs = [TensorSpec(info.name, dtype or info.dtype, info.shape) for info in weights.tensors.values()]
    if rounding == "stochastic" and all(spec.dtype != "bfloat16" for spec in specs):
        raise PastryError(
            f"--rounding stochastic is for bfloat16 outputs, this one is {_common(spec.dtype for spec in specs)}; "
            "use --dtype bfloat16 or --rounding nearest"
        )
    lambdas = [(vector.path.absolute(), per_tensor(lam, weights.tensors, f"λ of {vector.path}")) for vector, lam in vectors]
    shards = plan_shards("model", specs, max_shard_bytes)
    identity = {
        "does": "inject",
        "target": [str(weights.path.absolute()), weights.stamp()],
        "skills": [[vector.manifest.fingerprint, each] for (vector, _), (_, each) in zip(vectors, lambdas, strict=True)],
        "options": [rounding, seed, vocab],
        "shards": [[shard.file, [[spec.name, spec.dtype] for spec in shard.tensors]] for shard in shards],
    }
    refuse_existing(out)
    if dry_run:
        return None
    open_work = partial(InjectWork, weights.path.absolute(), lambdas, rounding, seed, vocab)
    with sharded_output(out, shards, open_work, identity, spread=spread, progress=progress) as (directory, records):
        _copy_companions(weights, directory, dtype)
        tried = rounding != "stochastic" and any(spec.dtype == "bfloat16" for spec in specs)
        report = InjectReport(
            **_arrived(records.values(), "sums"),
            target=str(target),
            target_fingerprint=fingerprint({name: record["target"] for name, record in records.items()}),
            fingerprint=fingerprint({name: record["out"] for name, record in records.items()}),
            skills=[
                InjectedSkill(
                    name=vector.manifest.name,
                    path=str(vector.path),
                    fingerprint=vector.manifest.fingerprint,
                    lam=lam.text if isinstance(lam, ModuleLambdas) else lam,
                    shared_rows=vector.shared if isinstance(vector, IntersectedSkill) else None,
                )
                for vector, lam in vectors
            ],
            dtype=_common(spec.dtype for spec in specs),
            rounding=_common(record["rounding"] for record in records.values()),
            nearest_realised_ratio=_arrived(records.values(), "nearest")["realised_ratio"] if tried else None,
            seed=seed,
            tensors={
                name: InjectedTensor(
                    **_arrived([record], "sums"), digest=record["out"], dtype=record["dtype"], rounding=record["rounding"]
                )
                for name, record in records.items()
            },
        )
        write_json(directory / REPORT_FILE, report.model_dump(mode="json"))
    return report


def _open(path: Path, target: Checkpoint, vocab: Vocabulary) -> AnySkill | IntersectedSkill:
    skill = open_skill(path)
    return IntersectedSkill(skill, target) if vocab == "intersect" else skill


def _arrived(records: Any, key: str) -> dict[str, float | None]:
    moved_d, d_d, missed = (math.fsum(record[key][i] for record in records) for i in range(3))
    if d_d == 0:
        return {"realised_ratio": None, "relative_error": None}
    return {"realised_ratio": moved_d / d_d, "relative_error": math.sqrt(missed / d_d)}


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
        write_json(directory / "config.json", config, allow_nan=True)


def _common(values: Any) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else "mixed" if found else "nearest"
