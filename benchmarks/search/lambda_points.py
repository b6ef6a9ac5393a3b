"""What does a λ point cost? In memory by the search's actors, and the obvious way: write a merged checkpoint, load it, ask.

    .venv/bin/python benchmarks/search/lambda_points.py
    .venv/bin/python benchmarks/search/lambda_points.py --target runs/quickstart/target --skill runs/quickstart/skill

Without arguments a model of the quickstart's shape with random weights, whose answers never end before the last token. One
thread; the ways take turns, so that a busy machine slows all of them. Writes benchmarks/results/search.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from pastry.config import SearchSettings, load_config
from pastry.domains import load_corpus, load_domain
from pastry.evaluation.measure import Bench, Evaluator, Items
from pastry.pipeline.space import Candidate, Space
from pastry.pipeline.workers import connect
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry_tune.sweep import run_trials
from pastry_tune.trial import Sweep

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LAMBDAS = [round(0.05 * k, 2) for k in range(1, 33)]


def make_models(config, place: Path) -> tuple[Path, Path]:
    """A target and a skill vector of the quickstart's shape, random."""
    load_corpus(config.domain, config.seed).save_tokenizer(place / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    shape = config.pretrain.model
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    settings = shape.model_dump(exclude={"model_type"}) | tokens
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(shape.model_type, vocab_size=len(tokenizer), **settings), dtype=torch.float32
    )
    for name in ("target", "end"):
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1e-3 * torch.randn_like(parameter)
    extract(place / "end", place / "target", place / "skill", name="skill")
    return place / "target", place / "skill"


def in_memory(bench: Bench, items: Items, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of an evaluation at an unchanged λ, of a change of λ alone, and of both."""
    evaluator = Evaluator(bench)
    evaluator.measure({"skill": 1.0}, items)
    found: dict[str, list[float]] = {"evaluation": [], "change": [], "point": []}
    for k in range(rounds):
        lam = LAMBDAS[k % len(LAMBDAS)]
        found["point"].append(_seconds(lambda lam=lam: evaluator.measure({"skill": lam}, items)))
        found["evaluation"].append(_seconds(lambda lam=lam: evaluator.measure({"skill": lam}, items)))
        found["change"].append(_seconds(lambda lam=lam: evaluator.engine.attach({"skill": lam + 0.01})))
    return found


def the_obvious_way(bench: Bench, items: Items, lam: float, place: Path) -> float:
    """Processor seconds of a point: a merged checkpoint is written, loaded and asked."""
    out = place / f"merged-{lam}"

    def point() -> None:
        inject(bench.target, [(bench.vectors["skill"], lam)], out)
        Evaluator(Bench(out, {}, bench.settings, bench.threads)).measure({}, items)

    return _seconds(point)


def tuned(bench: Bench, items: Items, place: Path) -> dict[str, float]:
    """All λ through Ray Tune, one at a time: from the first trial's start to the last one's end, and what they measured."""
    space = Space((Candidate("skill", "single", ("skill",)),), SearchSettings(lambdas=LAMBDAS))
    ends: list[tuple[float, float]] = []
    known = place / "known"
    known.mkdir()
    sweep = Sweep(bench, space, items, space.subsets(len(items.questions)), SearchSettings().penalties, known)
    resources = load_config(ROOT / "jobs" / "quickstart.yaml").resources
    began = time.monotonic()
    run_trials(space, sweep, 0, resources, 1, place, lambda _, last: ends.append((time.monotonic(), last["seconds"])))
    started = ends[0][0] - ends[0][1]
    measured = sum(seconds for _, seconds in ends)
    return {"start": started - began, "sweep": ends[-1][0] - started, "measured": measured, "trials": len(ends)}


def _seconds(action) -> float:
    """Of the processor: the machine may be busy with other things."""
    started = time.process_time()
    action()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path)
    parser.add_argument("--skill", type=Path)
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--written", type=int, default=8, help="points the obvious way")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    config = load_config(ROOT / "jobs" / "quickstart.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        target, skill = (arguments.target, arguments.skill) if arguments.target else make_models(config, place)
        shared = {"subject": config.target, "domain": config.domain, "world_seed": config.seed, "generation": config.generation}
        bench = Bench(target, {"skill": skill}, shared, 1)
        items = Items(load_domain(config.target, config.domain, config.seed).questions(1, "validation"))
        memory = in_memory(bench, items, arguments.rounds)
        written = [the_obvious_way(bench, items, lam, place) for lam in LAMBDAS[: arguments.written]]
        connect()
        tune = tuned(bench, items, place)
    evaluation, change, point = (median(memory[key]) for key in ("evaluation", "change", "point"))
    claims = {
        "change of λ ÷ evaluation": change / evaluation,
        "32 points ÷ 32 evaluations, in memory": sum(memory["point"][:32]) / sum(memory["evaluation"][:32]),
        "32 points through Ray Tune ÷ their evaluations": tune["sweep"] / tune["measured"],
        "a point the obvious way ÷ a point in memory": median(written) / point,
    }
    machine = f"{time.strftime('%Y-%m-%d')}; {platform.machine()}, {os.cpu_count()} cores, one thread"
    weights = "the quickstart's" if arguments.target else "random"
    note = (
        f"{len(items.questions)} questions; weights: {weights}; medians of {arguments.rounds} points in memory and "
        f"{arguments.written} written, processor time; Tune on the clock, one trial at a time. {machine}."
    )
    rows = [("evaluation, λ unchanged", evaluation), ("change of λ", change), ("a point in memory", point)]
    rows += [("a point the obvious way", median(written))]
    text = "| | milliseconds |\n|---|---|\n" + "".join(f"| {name} | {1000 * value:.1f} |\n" for name, value in rows)
    text += f"| a point through Ray Tune, all 32 | {1000 * tune['sweep'] / tune['trials']:.1f} |\n"
    text += f"| before Tune's first trial | {1000 * tune['start']:.0f} |\n"
    text += "\n| ratio | |\n|---|---|\n" + "".join(f"| {name} | {value:.3f} |\n" for name, value in claims.items())
    print(text)
    document = {"machine": machine, "note": note, "claims": claims, "memory": memory, "written": written, "tune": tune}
    (RESULTS / "search.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "search.md").write_text(f"{text}\n{note}\n")


if __name__ == "__main__":
    main()
