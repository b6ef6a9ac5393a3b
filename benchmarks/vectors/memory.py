"""Peak memory of extract and inject by model size, against a bound that depends on the largest tensor alone.

    .venv/bin/python benchmarks/vectors/memory.py --sizes 0.5 1 4

The bound: 3 × the largest tensor as the checkpoint stores it + what `import torch` takes + 200 MB. Exit status 1 if it
is broken.
"""

import shutil
import sys
from pathlib import Path

from harness import Case, extract_command, inject_command, make_models, measure, parser, workspace, write_results

MARGIN_MB = 200
LAMBDA = 0.4  # of a bfloat16 step, so that `auto` has to round stochastically


def cases(work: Path, models: Path) -> list[Case]:
    """In an order in which every vector is there when it is injected."""
    found = []
    for dtype in ("float32", "bfloat16"):
        vector, out = work / f"{dtype}-vector", work / "injected"
        sources = [models / "end", models / "start"]
        found.append(Case(f"extract, stored {dtype}", [extract_command(models, vector, dtype)], sources, [vector]))
        for rounding in ("nearest", "auto"):
            command = inject_command(models, vector, out, LAMBDA, "--rounding", rounding)
            found.append(Case(f"inject a {dtype} vector, {rounding}", [command], [models / "target", vector], [out]))
    return found


def measure_size(work: Path, size_gb: float, torch_mb: float) -> list[dict]:
    models, facts = make_models(work, size_gb)
    largest = facts["largest_tensor_bytes"] / 1e6
    rows = []
    for case in cases(work, models):
        measured = case.run()
        print(f"{size_gb:g} GB  {measured.peak_mb:7.0f} MB  {case.name}", flush=True)
        rows.append(
            {
                "model_gb": facts["bytes"] / 1e9,
                "largest_tensor_mb": largest,
                "command": case.name,
                "peak_mb": measured.peak_mb,
                "bound_mb": 3 * largest + torch_mb + MARGIN_MB,
            }
        )
        if case.name.startswith("inject"):
            case.clean()
    for directory in work.glob("*-vector"):
        shutil.rmtree(directory)
    return rows


def table(rows: list[dict]) -> str:
    lines = ["| model GB | largest tensor MB | | peak MB | bound MB | within |", "|---|---|---|---|---|---|"]
    for row in rows:
        within = "yes" if row["peak_mb"] <= row["bound_mb"] else "**no**"
        numbers = f"{row['peak_mb']:.0f} | {row['bound_mb']:.0f} | {within}"
        lines.append(f"| {row['model_gb']:.3g} | {row['largest_tensor_mb']:.3g} | {row['command']} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", type=float, nargs="+", default=[0.5, 1, 4], help="GB of each model in bfloat16")
    arguments = options.parse_args()
    torch_mb = measure([sys.executable, "-c", "import torch"]).peak_mb
    rows = []
    with workspace(arguments) as work:
        for size in arguments.sizes:
            rows += measure_size(work, size, torch_mb)
            if not arguments.keep:
                shutil.rmtree(work / f"models-{size:g}")
    about = f"Bound: 3 × the largest tensor in bfloat16 + {torch_mb:.0f} MB (`import torch`) + {MARGIN_MB} MB. "
    about += "Peak: largest resident set of the process, mapped file pages included. MB: 10⁶ bytes."
    numbers = {"import_torch_mb": torch_mb, "margin_mb": MARGIN_MB, "rows": rows}
    write_results(arguments.results, "vectors_memory", numbers, f"{table(rows)}\n\n{about}")
    sys.exit(any(row["peak_mb"] > row["bound_mb"] for row in rows))


if __name__ == "__main__":
    main()
