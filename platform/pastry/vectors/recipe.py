"""Recipe names, the text users type for an injected model: `target+a@3:0.5+b:0.3`."""

import math
import re

from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError

NAME = r"[^\s+@:]+"
_TERM = re.compile(rf"(?P<name>{NAME})(?:@(?P<version>{NAME}))?(?::(?P<lam>[^\s+@:]*))?")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e-?\d+)?", re.ASCII | re.IGNORECASE)
_FORM = "wanted target[+skill[@version][:λ]]…, for instance model+arithmetic@best:0.8"


class SkillTerm(BaseModel):
    """λ·v in a recipe: a skill's name, the alias or number of its version (None: the newest), and λ."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str | None = None
    lam: FiniteFloat = 1.0


class Recipe(BaseModel):
    """A target and the skills to inject into it, in order."""

    model_config = ConfigDict(extra="forbid")

    target: str
    skills: list[SkillTerm] = []


def parse_recipe(text: str) -> Recipe:
    """The recipe called `text`; paths and URIs, which contain `:`, are not recipe names. Raises PastryError."""
    target, *terms = text.split("+")
    if not re.fullmatch(NAME, target):
        raise PastryError(f"recipe {text!r}: {target!r} is not a target's name; {_FORM}")
    return Recipe(target=target, skills=[_parse_term(term, text) for term in terms])


def format_recipe(recipe: Recipe) -> str:
    """The name that `parse_recipe` gives `recipe` back for; a λ of 1 is left out."""
    return "+".join([recipe.target, *map(_format_term, recipe.skills)])


def _parse_term(term: str, text: str) -> SkillTerm:
    match = _TERM.fullmatch(term)
    if not match:
        raise PastryError(f"recipe {text!r}: cannot read the skill {term!r}; {_FORM}")
    fields = {key: value for key, value in match.groupdict().items() if value is not None}
    if "lam" in fields:
        lam = fields["lam"]
        if not _NUMBER.fullmatch(lam) or not math.isfinite(float(lam)):
            raise PastryError(f"recipe {text!r}: λ of {fields['name']} is {lam!r}, wanted a finite number such as 0.8")
        fields["lam"] = float(lam)
    return SkillTerm(**fields)


def _format_term(term: SkillTerm) -> str:
    version = f"@{term.version}" if term.version is not None else ""
    # "+" separates skills, so 1e+20 is written 1e20.
    lam = f":{term.lam!r}".removesuffix(".0").replace("e+", "e") if term.lam != 1.0 else ""
    return term.name + version + lam
