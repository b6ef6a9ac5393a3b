"""The register stage: the vector with its lineage, and the injected model as a recipe."""

from __future__ import annotations

from typing import Any

from pastry.evaluation.score import Score
from pastry.evaluation.statistics import paired_difference
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import skill_directory
from pastry.registry.register import register_recipe, register_skill
from pastry.vectors.files import read_json, write_json
from pastry.vectors.lora.factored import open_skill

ALIAS = "champion"


def register(context: Context) -> dict[str, Any]:
    """Writes `registered.json`: models:/ URIs of the skill and of the recipe."""
    best = read_json(context.inputs["search"] / "search.json")["best"]
    rows = {row["name"]: Score(**row) for row in read_json(context.inputs["evaluate"] / "evaluation.json")["rows"]}
    gain, low, high = paired_difference(rows["past@best"].correct, rows["target_sft"].correct)
    skill = skill_directory(context.inputs[f"skill:{best['source']}"]).resolve()
    target = context.model("target").resolve()
    tracker = context.run.tracker
    tags = {
        "pastry.lambda": str(best["lambda"]),
        "pastry.target": context.settings["subject"],
        "pastry.gain": f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]",
    }
    description = (
        f"Skill learned by RL on '{best['source']}'. On '{context.settings['subject']}' at λ = {best['lambda']:g}: accuracy "
        f"{rows['past@best'].accuracy:.3f} instead of {rows['target_sft'].accuracy:.3f} (n = {rows['past@best'].n}, "
        f"paired gain {gain:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})."
    )
    skill_uri = context.run.insist(
        lambda run_id: register_skill(tracker.client, skill, run_id, tags, ALIAS, description)
    )
    manifest = open_skill(skill).manifest
    recipe = {
        "target": str(target),
        "skills": [{"name": manifest.name, "path": str(skill), "fingerprint": manifest.fingerprint, "lambda": best["lambda"]}],
    }
    name = f"{context.settings['kind']}-{context.settings['subject']}-with-{best['source']}"
    tags |= {"pastry.skill": skill_uri}
    recipe_uri = context.run.insist(
        lambda run_id: register_recipe(tracker.client, tracker.uri, name, recipe, run_id, tags, ALIAS)
    )
    write_json(context.out / "registered.json", {"skill": skill_uri, "recipe": recipe_uri})
    return {"skill": skill_uri, "recipe": recipe_uri}
