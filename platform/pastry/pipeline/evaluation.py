"""The evaluate stage: every row of the result table on the target's test questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch

from pastry.config import GenerationSettings
from pastry.domains import load_domain
from pastry.engine.transformers_engine import TransformersEngine
from pastry.evaluation.score import Score, score
from pastry.pipeline.space import lambda_document
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import skill_directory, winner
from pastry.pipeline.workers import remote
from pastry.vectors.files import write_json
from pastry.vectors.geometry.updates import CheckpointUpdate, SkillUpdate, cosine, cosine_table
from pastry.vectors.modules import Lambda
from pastry.vectors.random_vector import random_like


def evaluate(context: Context) -> dict[str, Any]:
    """Writes `evaluation.json`: the rows (`Score`), document perplexities, cosines."""
    settings, compare = context.settings, context.settings["compare"]
    skill, lam = winner(context.inputs["search"])

    # What is asked of the target with which vectors attached: row → ({vector: λ}, prompted).
    rows: dict[str, tuple[dict[str, Lambda], bool]] = {
        "target_sft": ({}, False),
        "past@1": ({"skill": 1.0}, False),
        "past@best": ({"skill": lam}, False),
    }
    vectors = {"skill": skill}
    if "past_1_round" in compare:
        vectors["one_round"] = skill_directory(context.inputs["one_round"])
        rows["past_1_round"] = ({"one_round": 1.0}, False)
    if "prompted" in compare:
        rows["prompted"] = ({}, True)
    if "control_random" in compare:
        vectors["random"] = context.out / "control_random"
        random_like(skill, vectors["random"], settings["seed"])
        rows["control_random"] = ({"random": lam}, False)
    if "control_sft_on_qa" in compare:
        vectors["sft_on_qa"] = skill_directory(context.inputs["sft_on_qa"])
        rows["control_sft_on_qa"] = ({"sft_on_qa": lam}, False)

    models = {"base": context.model("base")}
    models |= {row: context.model(row) for row in ("pre_injection", "rl_on_target") if row in compare}
    ask = remote(_ask, context.config.resources)
    pending = [ask(settings, path, {}, {row: ({}, False)}) for row, path in models.items()]
    pending.append(ask(settings, context.model("target"), vectors, rows, perplexity_of=["target_sft", "past@best"]))
    scores: dict[str, Score] = {}
    perplexity: dict[str, float] = {}
    for done, reference in enumerate(pending, 1):
        found, losses = ray.get(reference)
        scores |= {row.name: row for row in found}
        perplexity |= losses
        context.run.log({"step": done, "steps": len(pending)})

    updates = {
        "sft_source": CheckpointUpdate(context.model("source"), context.model("base")),
        "sft_target": CheckpointUpdate(context.model("target"), context.model("base")),
        "rl": SkillUpdate(skill),
    }
    pairs = {
        "sft_source_rl": ("sft_source", "rl"),
        "sft_target_rl": ("sft_target", "rl"),
        "sft_sft": ("sft_source", "sft_target"),
    }
    document = {
        "rows": [row.model_dump() for row in scores.values()],
        "lambda": {row: next(map(lambda_document, attached.values()), None) for row, (attached, _) in rows.items()},
        "perplexity": perplexity,
        "cosines": {name: cosine(updates[a], updates[b]) for name, (a, b) in pairs.items()},
        "cosine_tables": {name: cosine_table(updates[a], updates[b]) for name, (a, b) in pairs.items()},
    }
    write_json(context.out / "evaluation.json", document)
    return {f"accuracy/{row.name.replace('@', '_at_')}": row.accuracy for row in scores.values()}


def _ask(
    settings: dict[str, Any],
    model: Path,
    vectors: dict[str, Path],
    rows: dict[str, tuple[dict[str, Lambda], bool]],
    perplexity_of: list[str] = (),
) -> tuple[list[Score], dict[str, float]]:
    """In a Ray task: one model in memory, its vectors attached in turn."""
    torch.set_num_threads(1)
    domain = load_domain(settings["subject"], settings["domain"], settings["world_seed"])
    generation: GenerationSettings = settings["generation"]
    questions = domain.questions(1, "test")
    engine = TransformersEngine(model, vectors)
    scores, perplexity = [], {}
    for row, (lambdas, prompted) in rows.items():
        engine.attach(lambdas)
        scores.append(score(row, engine, domain, questions, generation, prompted))
        if row in perplexity_of:
            perplexity[row] = engine.perplexity(domain.documents(1))
    return scores, perplexity
