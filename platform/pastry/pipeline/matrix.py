"""The signals and matrix stages: which source for which target, predicted before any RL and measured after it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ray
import torch

from pastry.config import GenerationSettings
from pastry.domains import load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.evaluation.agreement import agreement, combined, places, within_targets
from pastry.evaluation.score import Score, score
from pastry.evaluation.signals import SIGNALS, Reader, Sampling, measure
from pastry.evaluation.statistics import cochran_q, paired_difference
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import skill_directory
from pastry.pipeline.workers import remote
from pastry.vectors.files import read_json, write_json

COMBINED = "combined"


def signals(context: Context) -> dict[str, Any]:
    """Writes `signals.json`: every signal of every source for every other domain, and the order they predict."""
    settings = context.settings
    sources, targets = _by_role(context, "source"), _by_role(context, "target")
    ask = remote(_measure, context.config.resources)
    started = time.monotonic()
    pending = {
        source: ask(settings, context.model("base"), source, path, {t: p for t, p in targets.items() if t != source})
        for source, path in sources.items()
    }
    found: dict[str, dict[str, dict[str, float] | str]] = {}
    for done, (source, reference) in enumerate(pending.items(), 1):
        found[source] = ray.get(reference)
        context.run.log({"step": done, "steps": len(pending)})
    entries = []
    for name in settings["signals"]:
        values = {source: row[name] for source, row in found.items() if not isinstance(row[name], str)}
        absent = {source: row[name] for source, row in found.items() if isinstance(row[name], str)}
        entries.append({"name": name, "meaning": SIGNALS[name][1], "values": values, "absent": absent})
    # One order from all of them: no signal is known to be worth more than another.
    whole = [entry["values"] for entry in entries if not entry["absent"]]
    meaning = f"mean of the ranks by the {len(whole)} signals that every source has"
    entries.append({"name": COMBINED, "meaning": meaning, "values": combined(whole) if whole else {}, "absent": {}})
    predicted = places(entries[-1]["values"])
    document = {"sources": list(sources), "targets": list(targets), "signals": entries, "predicted": predicted}
    write_json(context.out / "signals.json", document | {"seconds": time.monotonic() - started})
    return {f"predicted_rank/{source}": place for source, place in predicted.items()}


def matrix(context: Context) -> dict[str, Any]:
    """Writes `matrix.json`: the gain of every source's skill in every target, and how well each signal predicted it."""
    settings = context.settings
    skills, targets = _by_role(context, "skill"), _by_role(context, "target")
    ask = remote(_gains, context.config.resources)
    pending = {
        target: ask(settings, target, path, {s: skill_directory(p) for s, p in skills.items()})
        for target, path in targets.items()
    }
    gains: dict[str, dict[str, dict[str, float]]] = {source: {} for source in skills}
    sources_differ = {}
    for done, (target, reference) in enumerate(pending.items(), 1):
        before, after = ray.get(reference)
        for source, found in after.items():
            mean, low, high = paired_difference(found.correct, before.correct)
            pair = {"n": before.n, "before": before.accuracy, "after": found.accuracy}
            gains[source][target] = pair | {"mean": mean, "low": low, "high": high}
        others = [found.correct for source, found in after.items() if source != target]
        sources_differ[target] = cochran_q(others) if len(others) > 1 else None
        context.run.log({"step": done, "steps": len(pending), "accuracy": max(found.accuracy for found in after.values())})
    # A source in its own domain was trained on these questions: shown for reference, part of no comparison.
    measured = {s: {t: pair["mean"] for t, pair in row.items() if t != s} for s, row in gains.items()}
    document = read_json(context.inputs["signals"] / "signals.json")
    for entry in document["signals"]:
        entry["agreement"] = agreement([(entry["values"], measured)]).model_dump()
    place = places(within_targets(measured))
    ranking = [
        {
            "source": source,
            "predicted_rank": document["predicted"].get(source),
            "measured_rank": place[source],
            "mean_gain": sum(measured[source].values()) / len(measured[source]),
        }
        for source in sorted(place, key=place.get)
    ]
    result = {"lambda": settings["lambda"], "seed": settings["world_seed"], "sources": list(skills), "targets": list(targets)}
    result |= {"gains": gains, "sources_differ_p": sources_differ, "signals": document["signals"], "ranking": ranking}
    write_json(context.out / "matrix.json", result)
    return {f"mean_gain/{row['source']}": row["mean_gain"] for row in ranking}


def _by_role(context: Context, role: str) -> dict[str, Path]:
    prefix = f"{role}:"
    return {key.removeprefix(prefix): path for key, path in context.inputs.items() if key.startswith(prefix)}


def _measure(
    settings: dict[str, Any], base: Path, source: str, model: Path, targets: dict[str, Path]
) -> dict[str, dict[str, float] | str]:
    """In a Ray task: every signal of one source."""
    torch.set_num_threads(1)
    domains = {name: load_domain(name, settings["domain"], settings["world_seed"]) for name in settings["data"]}
    corpus = [text for domain in domains.values() for text in domain.documents(1)]

    sampling = Sampling(**settings["sampling"])

    def reader(name: str, stage: Path) -> Reader:
        return Reader(domains[name], stage / "model", base, corpus, sampling)

    return measure(settings["signals"], reader(source, model), [reader(*each) for each in targets.items()])


def _gains(settings: dict[str, Any], target: str, model: Path, skills: dict[str, Path]) -> tuple[Score, dict[str, Score]]:
    """In a Ray task: one target in memory, one skill at a time beside it."""
    torch.set_num_threads(1)
    domain = load_domain(target, settings["domain"], settings["world_seed"])
    generation: GenerationSettings = settings["generation"]
    questions = domain.questions(1, "test")
    engine = TransformersEngine(model / "model")
    before = score("target_sft", engine, domain, questions, generation)
    after = {}
    for source, path in skills.items():
        engine.add_skill(source, path)
        engine.attach({source: settings["lambda"]})
        after[source] = score(source, engine, domain, questions, generation)
        engine.drop_skill(source)
    return before, after
