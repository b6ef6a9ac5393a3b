"""A skill vector out of LoRA-trained runs: end adapter − start adapter on one base, kept as low-rank factors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.files import atomic_directory, parse_model, refuse_existing, write_json
from pastry.vectors.fingerprint import fingerprint
from pastry.vectors.lora.adapter import MERGE, Adapter, factor_name, is_adapter
from pastry.vectors.lora.factored import (
    FACTORS_FILE,
    METHOD,
    FactoredManifest,
    FactoredTensor,
    Term,
    describe_factors,
    factor_specs,
    write_safetensors,
    zero_tensor,
)
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.skill import MANIFEST_FILE, SkillFacts, copy_tokenizer, summarise


def extract_adapters(
    end: Path, start: Path, out: Path, *, name: str, base: Path | None, **options: object
) -> FactoredManifest | None:
    """`extract_lora` for an `end` and a `start` of which one or both are adapters; `start` may be their base itself.

    Raises PastryError if one is a checkpoint other than the base, or if no base is given and `start` is an adapter.
    """
    if is_adapter(end) and is_adapter(start):
        if base is None:
            raise PastryError("--end and --start are adapters; give the checkpoint they were trained on with --base")
        return extract_lora(end, start, out, name=name, base=base, **options)
    base = start if base is None else base
    if not is_adapter(end) or Path(base).resolve() != Path(start).resolve():
        adapter, other, option = (end, start, "--start") if is_adapter(end) else (start, end, "--end")
        raise PastryError(
            f"{adapter} is an adapter, but {option} {other} is neither an adapter nor the checkpoint given with --base "
            f"({base}), on which adapters are trained; give the adapter's own base as --base, or {MERGE}"
        )
    return extract_lora(end, None, out, name=name, base=base, **options)


def extract_lora(
    end_adapter: Path,
    start_adapter: Path | None,
    out: Path,
    *,
    name: str,
    base: Path,
    dry_run: bool = False,
    **facts: object,
) -> FactoredManifest | None:
    """Write the factored skill vector `name` = end − start to the new directory `out` and return its manifest.

    Both are PEFT LoRA adapters trained on the checkpoint `base`; no start means the base itself. Of the base only the
    headers, config.json and the tokenizer are read: they give the vector's names, shapes and architecture. Factors are
    stored in float32 and never multiplied out; a layer with the same factors and scale in both is exactly zero.
    `facts` are the fields of SkillFacts. `dry_run` only checks, and returns None. Memory: one layer's factors.
    Raises PastryError for adapters that are not plain LoRA, are of different bases or do not fit `base`, for NaN or Inf,
    an existing `out`, an unknown fact.
    """
    known = parse_model(SkillFacts, {"name": name, **facts}, "skill vector")
    adapters = [Adapter(path) for path in (end_adapter, start_adapter) if path is not None]
    weights = Checkpoint(base)
    _check_base(adapters, weights)
    refuse_existing(out)
    if dry_run:
        return None
    digests = [adapter.digests() for adapter in adapters]
    specs = {info.name: TensorSpec(info.name, "float32", info.shape) for info in weights.tensors.values()}
    layers: dict[str, list[Term]] = {}
    for module in sorted({module for adapter in adapters for module in adapter.modules}):
        terms = [(rank, sign * scale) for (rank, scale), sign in _both(adapters, module)]
        told = [(d[factor_name(module, "A")], d[factor_name(module, "B")]) for d in digests if factor_name(module, "A") in d]
        if len(terms) < 2 or terms[0][1] != -terms[1][1] or told[0] != told[1]:
            layers[module] = terms
    tensors: dict[str, FactoredTensor] = {spec.name: zero_tensor(spec) for spec in specs.values()}

    def factors() -> Iterator[np.ndarray]:
        for module, terms in layers.items():
            having = [adapter for adapter in adapters if module in adapter.modules]
            b = np.concatenate([adapter.factor(module, "B") for adapter in having], axis=1)
            a = np.concatenate([adapter.factor(module, "A") for adapter in having], axis=0)
            weight = f"{module}.weight"
            tensors[weight] = describe_factors(specs[weight], terms, b, a)
            yield b
            yield a

    with atomic_directory(out) as directory:
        stored = [
            factor
            for module, terms in layers.items()
            for factor in factor_specs(specs[f"{module}.weight"].shape, f"{module}.weight", terms)
        ]
        write_safetensors(directory / FACTORS_FILE, stored, factors())
        manifest = FactoredManifest(
            **known.model_dump(),
            **summarise(tensors),
            **{role: fingerprint(d) for role, d in zip(("end", "start"), digests, strict=False)},
            method=METHOD,
            stored_dtype="float32",
            source_dtypes=sorted({info.dtype for adapter in adapters for info in adapter.tensors.values()}),
            architecture=weights.architecture,
            base=weights.architecture.base,
            base_model=adapters[0].config.base_model_name_or_path,
        )
        copy_tokenizer(weights.path, directory)
        write_json(directory / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return manifest


def _both(adapters: list[Adapter], module: str) -> Iterator[tuple[Term, int]]:
    for adapter, sign in zip(adapters, (1, -1), strict=False):
        if module in adapter.modules:
            yield adapter.modules[module], sign


def _check_base(adapters: list[Adapter], weights: Checkpoint) -> None:
    names = [adapter.config.base_model_name_or_path for adapter in adapters]
    if len(set(names)) > 1:
        raise PastryError(
            f"{adapters[0].path} was trained on {names[0]!r}, {adapters[1].path} on {names[1]!r} (base_model_name_or_path); "
            f"wanted adapters of one base; if the two are the same weights, write the same name into both, else {MERGE}"
        )
    for adapter in adapters:
        for module in adapter.modules:
            info = weights.tensors.get(f"{module}.weight")
            if info is None or info.shape != adapter.shape(module):
                found = f"has {list(info.shape)} there" if info else "has no such tensor"
                raise PastryError(
                    f"{adapter.path}: the adapter changes {module}.weight {list(adapter.shape(module))}, "
                    f"{weights.path} {found}; give the checkpoint it was trained on as --base"
                )
