"""Does any cheap signal tell, before RL, which source to pay for? Several seeds of one config with a matrix group.

    .venv/bin/python benchmarks/source_choice.py rl.steps=12 --name source_choice_12_steps --seeds 0 1

Measures the matrix once a seed (finished stages are kept). Each seed has its own world, base and sources: rankings are
compared within a seed and target, p comes from permuting sources within seeds. Prints Markdown and writes it with all numbers
to benchmarks/results/NAME.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy import stats

from pastry.config import load_config
from pastry.evaluation.agreement import Table, agreement
from pastry.pipeline.runner import Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def measure(config: Path, seed: int, overrides: list[str]) -> dict:
    """One seed's matrix.json, with the seconds its stages took by kind."""
    changes = [f"seed={seed}", f"name=seed-{seed}", *overrides]
    subprocess.run([sys.executable, "jobs/matrix.py", "--config", str(config), *changes], cwd=ROOT, check=True)
    run = Run(load_config(config, changes))
    found = json.loads((run.path("matrix") / "matrix.json").read_text())
    seconds: dict[str, float] = {}
    for stage in run.wanted("matrix"):
        seconds[stage.kind] = seconds.get(stage.kind, 0) + run.marker(stage.name)["seconds"]
    return found | {"seconds": seconds, "steps": run.config.rl.steps}


def gains(matrix: dict) -> Table:
    """Of sources in other domains than their own."""
    return {s: {t: pair["mean"] for t, pair in row.items() if t != s} for s, row in matrix["gains"].items()}


def pooled(matrices: dict[int, dict]) -> list[dict]:
    """Every signal's agreement over the seeds, and what choosing by it would have been worth."""
    rows = []
    for i, signal in enumerate(next(iter(matrices.values()))["signals"]):
        runs = [(matrix["signals"][i]["values"], gains(matrix)) for matrix in matrices.values()]
        rows.append({"name": signal["name"]} | agreement(runs).model_dump() | {"worth": worth(runs)})
    return rows


def worth(runs: list[tuple[Table, Table]]) -> dict[str, float | None]:
    """Mean over targets: gain of the source that a signal ranks first, less the mean gain of all; beside it the best source's.

    The 95 % interval is a t interval over seeds; of one seed there is none.
    """
    chosen, best = [], []
    for predicted, measured in runs:
        targets = dict.fromkeys(target for row in measured.values() for target in row)
        of_run = []
        for target in targets:
            there = {source: row[target] for source, row in measured.items() if target in row}
            known = {source: predicted[source][target] for source in there if target in predicted.get(source, {})}
            if not known:
                return {"mean": None}
            first = [there[source] for source in known if known[source] == max(known.values())]
            of_run.append((np.mean(first) - np.mean(list(there.values())), max(there.values()) - np.mean(list(there.values()))))
        chosen.append(np.mean([each[0] for each in of_run]))
        best.append(np.mean([each[1] for each in of_run]))
    found = {"mean": float(np.mean(chosen)), "low": None, "high": None, "best_possible": float(np.mean(best))}
    if len(chosen) > 1:
        half = stats.t.ppf(0.975, len(chosen) - 1) * stats.sem(chosen)
        found |= {"low": found["mean"] - half, "high": found["mean"] + half}
    return found


def markdown(matrices: dict[int, dict], signals: list[dict]) -> str:
    lines = ["| seed | source | " + " | ".join(next(iter(matrices.values()))["targets"]) + " |"]
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    for seed, matrix in matrices.items():
        for source in matrix["sources"]:
            pairs = [(target, matrix["gains"][source][target]) for target in matrix["targets"]]
            cells = [f"{p['mean']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]{' (own)' if t == source else ''}" for t, p in pairs]
            lines.append(f"| {seed} | {source} | " + " | ".join(cells) + " |")
        differ = [matrix["sources_differ_p"][target] for target in matrix["targets"]]
        lines.append(f"| {seed} | p that sources are equal | " + " | ".join(f"{p:.2g}" for p in differ) + " |")
    lines += ["", "| signal | ρ within a target [95 %] | p | pairs | verdict | gain of its choice over the mean source |"]
    lines.append("|---" * 6 + "|")
    for row in signals:
        rho = "–" if row["rho"] is None else f"{row['rho']:+.2f}"
        rho += "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
        p, value = "–" if row["p"] is None else f"{row['p']:.2g}", row["worth"]
        choice = "–" if value["mean"] is None else f"{value['mean']:+.3f}"
        choice += "" if value.get("low") is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
        why = f" ({row['reason']})" if row["rho"] is None else ""
        lines.append(f"| {row['name']} | {rho} | {p} | {row['n']} | {row['verdict']}{why} | {choice} |")
    best = max(row["worth"].get("best_possible", 0) for row in signals)
    lines += ["", f"A choice that is always right would be worth {best:+.3f}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "jobs" / "lab_matrix.yaml")
    parser.add_argument("--name", default="source_choice", help="of the result files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("overrides", nargs="*", help="settings to change: key=value")
    arguments = parser.parse_args()
    matrices = {seed: measure(arguments.config, seed, arguments.overrides) for seed in arguments.seeds}
    signals = pooled(matrices)
    first = next(iter(matrices.values()))
    n = next(iter(first["gains"].values()))[first["targets"][0]]["n"]
    about = f"λ = {first['lambda']:g}, {first['steps']} RL steps, n = {n} test questions a target, seeds {arguments.seeds}; "
    text = f"{markdown(matrices, signals)}\n\n{about}{datetime.now(UTC).date()}.\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.name}.md").write_text(text)
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps({"signals": signals, "matrices": matrices}, indent=1))
    print(text)


if __name__ == "__main__":
    main()
