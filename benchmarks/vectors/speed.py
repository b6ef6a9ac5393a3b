"""How long extract and inject take beside `cp -r` and mergekit, as whole processes.

    .venv/bin/python benchmarks/vectors/speed.py --size 4

Every group of commands works on the same files. A round runs all of a group, alternately forwards and backwards; a ratio
divides two times of one round. The first round warms up and is not counted.
"""

import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from harness import (
    Case,
    Measured,
    extract_command,
    inject_command,
    make_models,
    measure,
    parser,
    spread,
    workspace,
    write_results,
)
from mergekit_env import DEFAULT_CACHE, REQUIREMENTS, install, merge_command

LAMBDA = 1.0
LAMBDA_STOCHASTIC = 0.4  # of a bfloat16 step: rounding to nearest would lose nearly all of it


def copies(work: Path, sources: list[Path]) -> list[Case]:
    """`cp -r`, which leaves its data in memory to be written later; and with `sync`, after which they are on the disk."""
    copy = work / "copy"
    commands = [["mkdir", copy], ["cp", "-r", *sources, copy]]
    name = f"cp -r {' '.join(source.name for source in sources)}"
    flush = ["find", copy, "-type", "f", "-exec", "sync", "{}", "+"]
    return [Case(name, commands, sources, [copy]), Case(f"{name}; sync", [*commands, flush], sources, [copy])]


def extract_group(work: Path, models: Path) -> list[Case]:
    sources = [models / "start", models / "end"]
    out = work / "vector"
    cases = copies(work, sources)
    for dtype in ("float32", "bfloat16"):
        cases.append(Case(f"extract, stored {dtype}", [extract_command(models, out, dtype)], sources, [out]))
    return cases


def inject_group(work: Path, models: Path, vector: Path) -> list[Case]:
    sources, out = [models / "target", vector], work / "injected"
    options = {
        "nearest": (LAMBDA, "nearest"),
        "auto": (LAMBDA, "auto"),
        f"auto, λ {LAMBDA_STOCHASTIC}": (LAMBDA_STOCHASTIC, "auto"),
    }
    cases = copies(work, [models / "target"])
    for name, (lam, rounding) in options.items():
        command = inject_command(models, vector, out, lam, "--rounding", rounding)
        cases.append(Case(f"inject, {name}", [command], sources, [out]))
    return cases


def merge_group(work: Path, models: Path, vector: Path, mergekit: Path) -> list[Case]:
    """The same result from start, end and target. The first two are what the others are compared with."""
    sources = [models / role for role in ("start", "end", "target")]
    out, fresh = work / "merged", work / "fresh-vector"
    cases = []
    for dtype in ("float32", "bfloat16"):
        recipe = work / f"{dtype}.yaml"
        command = merge_command(mergekit, recipe, models, out, LAMBDA, dtype=dtype, out_dtype="bfloat16")
        cases.append(Case(f"mergekit, computing in {dtype}", [command], sources, [out]))
    inject = [inject_command(models, of, out, LAMBDA, "--rounding", "nearest") for of in (fresh, vector)]
    both = [extract_command(models, fresh, "bfloat16"), inject[0]]
    cases.append(Case("extract (bfloat16) and inject", both, sources, [fresh, out]))
    cases.append(Case("inject (extracted before)", [inject[1]], [models / "target", vector], [out]))
    return cases


def run_group(cases: list[Case], repeats: int) -> Iterator[tuple[str, Measured, dict]]:
    """Name, measurement and report of every case in every counted round."""
    for number in range(repeats + 1):
        for case in cases if number % 2 else reversed(cases):
            measured = case.run()
            print(f"{'warm-up' if number == 0 else number:>8}  {measured.seconds:7.2f} s  {case.name}", flush=True)
            report = case.outputs[-1] / "inject.json"
            facts = json.loads(report.read_text()) if report.exists() else {}
            case.clean()
            if number:
                yield case.name, measured, {key: facts[key] for key in ("rounding", "realised_ratio") if key in facts}


def compare(cases: list[Case], repeats: int) -> dict:
    """By case: seconds, peaks, and the ratios to the first two cases of the group."""
    runs: dict[str, list[Measured]] = {case.name: [] for case in cases}
    reports = {}
    for name, measured, report in run_group(cases, repeats):
        runs[name].append(measured)
        reports[name] = report
    found = {}
    for name, mine in runs.items():
        ratios = {
            base.name: [run.seconds / its.seconds for run, its in zip(mine, runs[base.name], strict=True)]
            for base in cases[:2]
        }
        found[name] = {"runs": [asdict(run) for run in mine], "ratios": ratios, **reports[name]}
    return found


def table(group: dict) -> str:
    baselines = list(next(iter(group.values()))["ratios"])
    lines = ["| | seconds | " + " | ".join(f"× `{name}`" for name in baselines) + " | peak MB | realised |"]
    lines.append("|---" * (len(baselines) + 4) + "|")
    for name, row in group.items():
        seconds, peak = [run["seconds"] for run in row["runs"]], statistics.median(run["peak_mb"] for run in row["runs"])
        ratios = ["" if name == base else f"**{spread(row['ratios'][base])}**" for base in baselines]
        arrived = f"{100 * row['realised_ratio']:.1f} %, {row['rounding']}" if "rounding" in row else ""
        lines.append(f"| {name} | {spread(seconds)} | {' | '.join(ratios)} | {peak:.0f} | {arrived} |")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=float, default=4, help="GB of each model in bfloat16")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where mergekit's virtual environment is kept")
    options.add_argument("--no-mergekit", action="store_true")
    arguments = options.parse_args()
    mergekit = None if arguments.no_mergekit else install(arguments.cache)
    groups = {}
    with workspace(arguments) as work:
        models, facts = make_models(work, arguments.size)
        groups["Extract"] = compare(extract_group(work, models), arguments.repeats)
        for dtype in ("float32", "bfloat16"):
            vector = work / f"{dtype}-vector"
            shutil.rmtree(vector, ignore_errors=True)
            measure(extract_command(models, vector, dtype))
            groups[f"Inject a {dtype} vector"] = compare(inject_group(work, models, vector), arguments.repeats)
            if dtype == "bfloat16" and mergekit:
                cases = merge_group(work, models, vector, mergekit)
                groups["Merge: target + λ·(end − start)"] = compare(cases, arguments.repeats)
            shutil.rmtree(vector)
    parts = [f"### {title}\n\n{table(group)}" for title, group in groups.items()]
    about = f"Models of {facts['bytes'] / 1e9:.3g} GB in bfloat16, {facts['tensors']} tensors, the largest "
    about += f"{facts['largest_tensor_bytes'] / 1e6:.3g} MB. Median (min–max) of {arguments.repeats} rounds."
    versions = "" if arguments.no_mergekit else REQUIREMENTS.read_text().split()[0]
    text = "\n\n".join([*parts, f"{about} {versions}".strip()])
    numbers = {"models": facts, "repeats": arguments.repeats, "mergekit": versions, "groups": groups}
    write_results(arguments.results, "vectors_speed", numbers, text)


if __name__ == "__main__":
    main()
