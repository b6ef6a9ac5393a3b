"""Is inject right? The same sum computed by mergekit, an independent implementation.

    .venv/bin/python benchmarks/vectors/oracle.py

target + λ·(end − start), from bfloat16 checkpoints, computed in float32 by both: once written as float32, where they may
differ by the order of three additions, once as bfloat16. Exit status 1 if they differ by more.
"""

import shutil
import sys
from pathlib import Path

import torch
from harness import extract_command, inject_command, make_models, measure, parser, workspace
from mergekit_env import DEFAULT_CACHE, install, merge_command
from safetensors import safe_open

FLOAT32_ROUNDING = 2.0**-24
ROUNDINGS = 8  # there are three in v = end − start and target + λ·v, five in mergekit's sum
UNEQUAL_BFLOAT16 = 1e-3  # the share that may lie so near the middle of two bfloat16 numbers that those roundings decide


def read(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    return tensors


def bfloat16_steps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many representable numbers lie between two bfloat16 tensors' elements."""
    ordinals = []
    for bits in (a.view(torch.int16).int(), b.view(torch.int16).int()):
        ordinals.append(torch.where(bits < 0, -(bits & 0x7FFF), bits))
    return (ordinals[0] - ordinals[1]).abs()


def compare(models: Path, pastry: Path, mergekit: Path, lam: float, dtype: str) -> tuple[str, bool]:
    """What to print of two results in `dtype`, and whether they agree to within rounding."""
    mine, theirs = read(pastry), read(mergekit)
    if mine.keys() != theirs.keys():
        return f"tensors differ: {sorted(mine.keys() ^ theirs.keys())}", False
    inputs = {role: read(models / role) for role in ("start", "end", "target")}
    equal = elements = steps = 0
    worst = worst_roundings = 0.0
    for name, tensor in mine.items():
        if {tensor.dtype, theirs[name].dtype} != {getattr(torch, dtype)}:
            return f"{name} has dtypes {tensor.dtype} and {theirs[name].dtype}, wanted {dtype}", False
        difference = (tensor.double() - theirs[name].double()).abs()
        sizes = {role: tensors[name].double().abs() for role, tensors in inputs.items()}
        terms = sizes["target"] + sizes["start"] + abs(lam) * (sizes["start"] + sizes["end"])
        worst = max(worst, difference.max().item())
        worst_roundings = max(worst_roundings, (difference / (terms * FLOAT32_ROUNDING)).nan_to_num().max().item())
        equal += int((difference == 0).sum())
        elements += difference.numel()
        if dtype == "bfloat16":
            steps = max(steps, int(bfloat16_steps(tensor, theirs[name]).max()))
    text = f"{dtype}, λ {lam:g}: largest difference {worst:.1e}, equal {100 * equal / elements:.4f} % of {elements} elements"
    if dtype == "bfloat16":
        return f"{text}, at most {steps} steps apart", steps <= 1 and equal >= (1 - UNEQUAL_BFLOAT16) * elements
    return f"{text}; {worst_roundings:.2f} float32 roundings, {ROUNDINGS} allowed", worst_roundings <= ROUNDINGS


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=float, default=0.02, help="GB of each model in bfloat16")
    options.add_argument("--lambdas", type=float, nargs="+", default=[1.0, 0.7, -0.5])
    options.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where mergekit's virtual environment is kept")
    arguments = options.parse_args()
    mergekit = install(arguments.cache)
    agreed = []
    with workspace(arguments) as work:
        models, _ = make_models(work, arguments.size)
        vector, injected, merged = work / "vector", work / "injected", work / "merged"
        shutil.rmtree(vector, ignore_errors=True)
        measure(extract_command(models, vector, "float32"))
        for lam in arguments.lambdas:
            for dtype in ("float32", "bfloat16"):
                for directory in (injected, merged):
                    shutil.rmtree(directory, ignore_errors=True)
                measure(inject_command(models, vector, injected, lam, "--dtype", dtype, "--rounding", "nearest"))
                measure(merge_command(mergekit, work / "recipe.yaml", models, merged, lam, dtype="float32", out_dtype=dtype))
                text, agrees = compare(models, injected, merged, lam, dtype)
                print(f"{'ok' if agrees else 'FAILED':<7}{text}", flush=True)
                agreed.append(agrees)
    sys.exit(not all(agreed))


if __name__ == "__main__":
    main()
