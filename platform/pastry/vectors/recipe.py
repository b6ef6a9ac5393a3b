"""Recipe names, the text users type for an injected model: `target+a@3:0.5+consensus(b,c,d):attention=1,all=0.3`."""

import re

from pydantic import BaseModel, ConfigDict, FiniteFloat

from pastry.errors import PastryError
from pastry.vectors.algebra.merging import parameters
from pastry.vectors.modules import ModuleLambdas, parse_lambda

NAME = r"[^\s+@:]+"
_TERM = re.compile(rf"(?P<name>{NAME})(?:@(?P<version>{NAME}))?(?::(?P<lam>[^\s+@:]*))?")
_MERGED = re.compile(r"(?P<method>[a-z]+)\((?P<of>[^()]*)\)")
_FORM = (
    "wanted target[+skill[@version][:λ]]…, for instance model+arithmetic@best:0.8, "
    "or METHOD(skill,skill,…) in place of a skill, for instance model+consensus(a,b,c)"
)


class SkillTerm(BaseModel):
    """λ·v in a recipe: a skill's name, the alias or number of its version (None: the newest), and λ.

    λ is a number, or rules for module groups. `consensus(a,b,c)` names a vector that is made of others: `method` and `of`
    say how and of which, and `name` is the text.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str | None = None
    lam: FiniteFloat | ModuleLambdas = 1.0
    method: str | None = None
    of: list[str] = []


class Recipe(BaseModel):
    """A target and the skills to inject into it, in order."""

    model_config = ConfigDict(extra="forbid")

    target: str
    skills: list[SkillTerm] = []


def parse_recipe(text: str) -> Recipe:
    """The recipe called `text`; paths and URIs, which contain `:`, are not recipe names. Raises PastryError."""
    if not text.isprintable():
        raise PastryError(f"recipe {text!r} holds characters that cannot be printed; {_FORM}")
    target, *terms = text.split("+")
    if not re.fullmatch(NAME, target):
        raise PastryError(f"recipe {text!r}: {target!r} is not a target's name; {_FORM}")
    return Recipe(target=target, skills=[_parse_term(term, text) for term in terms])


def _parse_term(term: str, text: str) -> SkillTerm:
    match = _TERM.fullmatch(term)
    if not match:
        raise PastryError(f"recipe {text!r}: cannot read the skill {term!r}; {_FORM}")
    fields = {key: value for key, value in match.groupdict().items() if value is not None}
    if "lam" in fields:
        fields["lam"] = parse_lambda(fields["lam"], f"recipe {text!r}, skill {fields['name']}")
    merged = _MERGED.fullmatch(fields["name"])
    if merged:
        parameters(merged["method"])
        fields |= {"method": merged["method"], "of": merged["of"].split(",")}
        if "" in fields["of"]:
            raise PastryError(f"recipe {text!r}: {fields['name']!r} names a skill without a name; {_FORM}")
    return SkillTerm(**fields)
