"""A recipe as it is registered: a target and skills with λ, each by URI and fingerprint, so that it means the same for ever."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError
from pastry.registry.origin import origin
from pastry.registry.resolve import local_path, registered, same_weights, usable
from pastry.registry.versions import REGISTERED
from pastry.vectors.fingerprint import PREFIX
from pastry.vectors.modules import Lambda, parse_lambda


class Ingredient(BaseModel):
    """A target, or a skill vector."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """models:/name/3, or a directory."""
    fingerprint: str

    def open(self, registry: str) -> Path:
        """Its directory. Raises PastryError if its weights are gone, changed or revoked."""
        path = local_path(self.model, registry)
        if not self.model.startswith(REGISTERED):
            from pastry.registry.client import connect, plainly

            with plainly(registry):
                for version in same_weights(self.fingerprint, connect(registry)):
                    usable(version, f"{self.model}, which is {version.uri}")
        if (found := origin(path).fingerprint) != self.fingerprint:
            raise PastryError(f"{self.model}: the recipe was made with {self.fingerprint}, this is {found}; restore it")
        return path


class SkillIngredient(Ingredient):
    name: str
    lam: FiniteFloat | str
    """A number, or rules for module groups as they are written."""


class RegisteredRecipe(BaseModel):
    """What a recipe's version holds."""

    model_config = ConfigDict(extra="forbid")

    target: Ingredient
    skills: list[SkillIngredient]

    def open(self, registry: str) -> tuple[Path, dict[str, tuple[Path, Lambda]]]:
        """The target's directory, and name → directory and λ of the skills."""
        skills = {}
        for skill in self.skills:
            lam = parse_lambda(skill.lam, f"λ of {skill.name}") if isinstance(skill.lam, str) else skill.lam
            skills[skill.name] = (skill.open(registry), lam)
        return self.target.open(registry), skills

    def inputs(self) -> dict[str, str]:
        """Role → fingerprint."""
        return {"target": self.target.fingerprint} | {f"skill {skill.name}": skill.fingerprint for skill in self.skills}

    def fingerprint(self) -> str:
        """Of the document: target and skills by fingerprint, with λ, wherever they lie."""
        return (
            PREFIX
            + blake3(self.model_dump_json(exclude={"target": {"model"}, "skills": {"__all__": {"model"}}}).encode()).hexdigest()
        )


def open_registered(uri: str, registry: str | None = None) -> tuple[Path, list[tuple[Path, Lambda]]]:
    """What the recipe `models:/name@alias` says: the target's directory, and directory and λ of each skill."""
    from pastry.registry.client import registry_uri

    version = registered(uri, registry)
    if not version.recipe:
        raise PastryError(f"{uri} is a {version.facts.kind}, not a recipe; give it as --target or --skill")
    target, skills = RegisteredRecipe.model_validate(version.recipe).open(registry_uri(registry))
    return target, list(skills.values())
