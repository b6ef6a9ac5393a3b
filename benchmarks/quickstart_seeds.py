"""The quickstart on several seeds: is the effect real?

    .venv/bin/python benchmarks/quickstart_seeds.py --seeds 11 12 13 14 15

Runs jobs/quickstart.yaml once a seed (finished stages are kept), prints a Markdown table and writes it with all numbers
to benchmarks/results/quickstart_seeds.{md,json}. No setting was chosen on these seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
ACCURACIES = [
    "base", "target_sft", "past@1", "past@best", "past_1_round", "pre_injection", "rl_on_target", "prompted",
    "control_random", "control_sft_on_qa",
]  # fmt: skip
COSINES = {"sft_target_rl": "cos(ΔSFT_T, v)", "sft_source_rl": "cos(ΔSFT_S, v)", "sft_sft": "cos(ΔSFT_S, ΔSFT_T)"}


def run(seed: int, storage: Path, overrides: list[str]) -> dict:
    """One seed's result.json."""
    command = [sys.executable, "-m", "pastry.cli", "run", "jobs/quickstart.yaml"]
    command += [f"seed={seed}", f"name=seed-{seed}", f"storage={storage}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    result = json.loads((storage / f"seed-{seed}" / "result.json").read_text())
    del result["registered"]  # where this machine keeps its models
    for row in result["rows"]:
        del row["correct"]  # a line for each question
    return result


def table(results: dict[int, dict]) -> str:
    """Markdown: a column a seed, and the mean over seeds with its 95 % t interval."""
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in results) + " | mean [95 %] |"]
    lines.append("|---" * (len(results) + 2) + "|")

    def add(label: str, values: list[float], shown: list[str]) -> None:
        mean, half = sum(values) / len(values), 0.0
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        lines.append(f"| {label} | " + " | ".join(shown) + f" | {mean:.3f} [{mean - half:.3f}, {mean + half:.3f}] |")

    rows = {seed: {row["name"]: row for row in result["rows"]} for seed, result in results.items()}
    names = [name for name in ACCURACIES if all(name in of for of in rows.values())]
    for name in names:
        values = [rows[seed][name]["accuracy"] for seed in results]
        add(name, values, [f"{value:.3f}" for value in values])
    for name in [name for name in names if name not in ("base", "target_sft")]:
        gains = [rows[seed][name]["gain"] for seed in results]
        shown = [f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" for gain in gains]
        add(f"gain of {name}, paired", [gain["mean"] for gain in gains], shown)
    lambdas = [result["lambda_best"] for result in results.values()]
    add("λ chosen on validation", lambdas, [f"{lam:g}" for lam in lambdas])
    for key, label in COSINES.items():
        values = [result["cosines"][key] for result in results.values()]
        add(label, values, [f"{value:+.3f}" for value in values])
    tries = [result["gate"]["gate_tries"] for result in results.values()]
    shown = [f"{'passed' if r['gate']['gate_passed'] else 'MISSED'} ({len(r['gate']['gate_tries'])})" for r in results.values()]
    add("gate (tries)", [len(of) for of in tries], shown)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--storage", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("overrides", nargs="*", help="settings to change: key=value")
    arguments = parser.parse_args()
    results = {seed: run(seed, arguments.storage.absolute(), arguments.overrides) for seed in arguments.seeds}
    first = next(iter(results.values()))
    n, today = first["rows"][0]["n"], datetime.now(UTC).date()
    text = f"{table(results)}\n\nn = {n} test questions a seed; {today}; {first['machine']}.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quickstart_seeds.md").write_text(text)
    (RESULTS / "quickstart_seeds.json").write_text(json.dumps(results, indent=1))
    print(text)


if __name__ == "__main__":
    main()
