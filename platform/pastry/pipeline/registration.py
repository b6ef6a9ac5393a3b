"""The register stage: the vector and the target with their lineage, and the injected model as a recipe of both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pastry.evaluation.score import Score
from pastry.evaluation.statistics import paired_difference
from pastry.pipeline.space import plain
from pastry.pipeline.stage import MARKER, Context
from pastry.pipeline.storage import storage
from pastry.pipeline.vectors import winner
from pastry.registry.recipes import Ingredient, RegisteredRecipe, SkillIngredient
from pastry.registry.register import register_directory, register_recipe
from pastry.registry.store import default_store
from pastry.registry.versions import Gain, Version
from pastry.vectors.files import read_json, write_json

ALIAS = "champion"
"""A name's first version gets it; a later one when somebody has read its report and promotes it, for servers follow it."""


def register(context: Context) -> dict[str, Any]:
    """Writes `registered.json`: models:/ URIs of the skill, of the target and of the recipe."""
    source = read_json(context.inputs["search"] / "search.json")["best"]["source"]
    kind, subject, tracker = context.settings["kind"], context.settings["subject"], context.run.tracker
    store = default_store(tracker.uri, storage(context.config))
    vector, lam = winner(context.inputs["search"])
    gain = _gain(context.inputs["evaluate"], subject, plain(lam))

    def put(directory: Path, **facts: Any) -> Version:
        return first(context.run.insist(lambda run: register_directory(tracker.client, directory, store, run_id=run, **facts)))

    def first(version: Version) -> Version:
        if ALIAS not in tracker.client.get_registered_model(version.name).aliases:
            tracker.client.set_registered_model_alias(version.name, ALIAS, str(version.number))
        return version

    made = read_json(context.inputs["target"] / MARKER)["metrics"]["fingerprint"]
    read = f"The target after SFT on the documents of '{subject}'."
    target = put(context.model("target"), name=f"{kind}-{subject}-sft", description=read, fingerprint=made)
    learned = f"Learned by RL on '{source}'; the best that a search for '{subject}' found."
    skill = put(vector, description=learned, gain=gain)
    recipe = RegisteredRecipe(
        target=Ingredient(model=target.uri, fingerprint=target.fingerprint),
        skills=[SkillIngredient(model=skill.uri, fingerprint=skill.fingerprint, name=skill.name, lam=gain.lam)],
    )
    name = re.sub(r"[^\w.-]+", "-", f"{kind}-{subject}-with-{source}").strip("-")
    injected = first(context.run.insist(lambda run: register_recipe(tracker.client, name, recipe, run, gain=gain)))
    uris = {"skill": skill.uri, "target": target.uri, "recipe": injected.uri}
    write_json(context.out / "registered.json", uris)
    return uris


def _gain(evaluated: Path, subject: str, lam: float | str) -> Gain:
    """Of the injected target over the target alone, on the same test questions."""
    rows = {row["name"]: Score(**row) for row in read_json(evaluated / "evaluation.json")["rows"]}
    before, after = rows["target_sft"], rows["past@best"]
    mean, low, high = paired_difference(after.correct, before.correct)
    accuracies = {"before": before.accuracy, "after": after.accuracy}
    return Gain(target=subject, lam=lam, n=after.n, mean=mean, low=low, high=high, **accuracies)
