"""Model cards: what a registered version is, in Markdown, for MLflow's page and `pastry vector show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pastry.registry.origin import Origin
from pastry.registry.versions import Facts

if TYPE_CHECKING:
    from pastry.registry.recipes import RegisteredRecipe

LONGEST = 5000
"""Characters that MLflow's databases take."""
WHAT = {
    "difference": "what RL changed",
    "adapter_difference": "what RL changed, in LoRA adapters",
    "random": "random, of the norm of another, as its control",
}
"""By a vector's method."""


def card(found: Origin, uri: str, facts: Facts) -> str:
    """Of a skill vector or a checkpoint; what the user said comes first."""
    parts = [facts.description]
    if not found.manifest:
        parts.append("**What.** A checkpoint.")
        parts.append(_made_from(facts))
        parts.append(_use(f"pastry vector inject --target {uri} --skill SKILL:1.0 --out DIR"))
        return "\n\n".join(filter(None, parts))[:LONGEST]
    manifest = found.manifest
    learned = f", learned on the domain '{facts.domain}'" if facts.domain else ""
    parts.append(
        f"**What.** Skill vector '{manifest.name}': {WHAT.get(manifest.method, f'a {manifest.method} of others')}{learned}. "
        f"Norm {manifest.norm:.4g}; {len(manifest.tensors)} tensors, stored as {manifest.stored_dtype}."
    )
    parts.append(_made_from(facts))
    if facts.gain:
        gain = facts.gain
        parts.append(
            f"**How good.** On '{gain.target}' at λ = {gain.lam}: accuracy {100 * gain.after:.1f} % instead of "
            f"{100 * gain.before:.1f} %; paired gain {100 * gain.mean:+.1f} points, 95 % interval "
            f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}, n = {gain.n} questions."
        )
    elif facts.scores:
        parts.append("**How good.** " + ", ".join(f"{key} {value:g}" for key, value in facts.scores.items()) + ".")
    else:
        parts.append("**How good.** Not measured: `pastry search` and `pastry evaluate` do.")
    cosine = "not known: it was extracted without a base"
    if facts.cosine_to_sft is not None:
        cosine = f"cosine {facts.cosine_to_sft:+.4f} to the SFT update it was learned on (0 is orthogonal)"
    parts.append(f"**How near orthogonal.** {cosine[0].upper()}{cosine[1:]}.")
    shape = manifest.architecture.model_dump(include={"model_type", "hidden_size", "vocab_size"}, exclude_none=True)
    sizes = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shape.items())
    base = f"Models trained from the base `{manifest.base}`" if manifest.base else "Models of the base it was learned on"
    parts.append(f"**For which bases.** {base} ({sizes}).")
    lam = facts.gain.lam if facts.gain else facts.lambda_advice if facts.lambda_advice is not None else 1.0
    chosen = "chosen on validation questions" if facts.gain else "to start from; `pastry search` finds the best"
    parts.append(f"**λ.** {lam}, {chosen}.")
    parts.append(_use(f"pastry vector inject --target MODEL --skill {uri}:{lam} --out DIR"))
    return "\n\n".join(filter(None, parts))[:LONGEST]


def recipe_card(recipe: RegisteredRecipe, uri: str, facts: Facts) -> str:
    """Of a recipe."""
    skills = " + ".join(f"{skill.lam} · {skill.model}" for skill in recipe.skills)
    parts = [f"**What.** An injected model that has not been written out: {recipe.target.model} + {skills}."]
    if facts.gain:
        parts.append(
            f"**How good.** {facts.gain}, in points of accuracy over the target alone, paired, with its 95 % interval."
        )
    parts.append(f'**Use.** `mlflow.pyfunc.load_model("{uri}").predict([prompt])`, or as an ordinary checkpoint:')
    parts.append(f"```\npastry vector inject --recipe {uri} --out DIR\n```")
    return "\n\n".join(parts)[:LONGEST]


def _made_from(facts: Facts) -> str:
    lines = [f"- {role}: `{made}`" for role, made in facts.inputs.items()]
    if facts.training_run:
        lines.append(f"- training run: `{facts.training_run}`")
    return "\n".join(["**Made from**", "", *lines]) if lines else ""


def _use(command: str) -> str:
    return f"**Use.**\n\n```\n{command}\n```"
