"""Which part of a model a tensor belongs to, and a λ of its own for each part."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pastry.errors import PastryError

OUTSIDE_LAYERS = "-"
_IN_LAYER = re.compile(r"(?:model\.language_model|model|transformer)\.(?:layers|h)\.([0-9]{1,6})\.(.+)")
# In this order: a norm inside attention (q_norm, post_attention_layernorm) is a norm.
GROUPS = {
    "norms": re.compile(r"norm|(^|\.)ln_"),
    "embeddings": re.compile(r"embed|lm_head|(^|\.)w[tp]e\."),
    "attention": re.compile(r"attn|attention"),
    "mlp": re.compile(r"mlp|feed_forward|ffn|experts|(^|\.)fc\d"),
}
MAX_LAMBDA = 3.4e38
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_RULE = re.compile(r"(?P<group>[a-z]+|/(?P<regex>[^/]+)/)(?:\[(?P<first>[0-9]{1,6})-(?P<last>[0-9]{1,6})\])?=(?P<lam>[^=]+)")
_FORM = "wanted GROUP=λ or GROUP[FIRST-LAST]=λ, for instance attention=1,mlp[0-11]=0.5~1,all=0 (groups: " + (
    ", ".join(GROUPS) + ", all, or /regular expression/; A~B goes from A to B over the layers)"
)
# Commas separate the rules, but may stand inside a regular expression.
_SEPARATOR = re.compile(r",(?=(?:[a-z]+|/[^/]+/)(?:\[\d+-\d+\])?=)")


def layer_and_module(name: str) -> tuple[str, str]:
    """("3", "self_attn.q_proj") for model.layers.3.self_attn.q_proj.weight, ("-", "norm") for model.norm.weight."""
    name = re.sub(r"\.(weight|bias)$", "", name)
    match = _IN_LAYER.fullmatch(name)
    return (match[1], match[2]) if match else (OUTSIDE_LAYERS, name.removeprefix("model."))


@dataclass(frozen=True)
class Rule:
    """λ of the tensors of one group: `at_first` in layer `first`, linearly to `at_last` in layer `last` (None: all)."""

    group: str
    first: int | None
    last: int | None
    at_first: float
    at_last: float

    def matches(self, name: str, layer: int | None) -> bool:
        if self.first is not None and (layer is None or not self.first <= layer <= self.last):
            return False
        if self.group.startswith("/"):
            return re.search(self.group[1:-1], name) is not None
        return self.group == "all" or self.group == next((g for g, form in GROUPS.items() if form.search(name)), None)


@dataclass(frozen=True)
class ModuleLambdas:
    """λ per module group; the first rule that matches a tensor counts. `text` is how it was written."""

    text: str
    rules: tuple[Rule, ...]

    def per_tensor(self, names: Iterable[str]) -> dict[str, float]:
        """λ of each tensor. A tensor that no rule matches, or a gradient over no layer, is a PastryError."""
        places = {name: layer_and_module(name)[0] for name in names}
        layers = {name: None if place == OUTSIDE_LAYERS else int(place) for name, place in places.items()}
        deepest = max((layer for layer in layers.values() if layer is not None), default=0)
        return {name: self._one(name, layer, deepest) for name, layer in layers.items()}

    def _one(self, name: str, layer: int | None, deepest: int) -> float:
        for rule in self.rules:
            if not rule.matches(name, layer):
                continue
            if rule.at_first == rule.at_last:
                return rule.at_first
            if layer is None:
                raise PastryError(f"λ {self.text!r}: tensor {name} is in no layer, wanted a number for it before the gradient")
            first, last = (0, deepest) if rule.first is None else (rule.first, rule.last)
            share = (layer - first) / (last - first) if last > first else 0.0
            return (1 - share) * rule.at_first + share * rule.at_last
        raise PastryError(f"λ {self.text!r}: no rule matches tensor {name}; end with all=0 to leave the rest alone, or all=1")


Lambda = float | ModuleLambdas


def parse_lambda(text: str, where: str) -> Lambda:
    """A number, or rules such as `attention=1,mlp[0-11]=0.5~1,/lm_head/=0,all=0`; PastryError beginning with `where`."""
    if "=" not in text:
        return _number(text, f"{where}: λ")
    rules = []
    for part in _SEPARATOR.split(text):
        match = _RULE.fullmatch(part)
        if not match or not (match["regex"] or match["group"] in (*GROUPS, "all")):
            raise PastryError(f"{where}: cannot read the rule {part!r}; {_FORM}")
        if match["regex"]:
            try:
                re.compile(match["regex"])
            except (re.error, OverflowError, RecursionError) as error:
                raise PastryError(f"{where}: /{match['regex']}/ is not a regular expression ({error})") from error
        first, last = (int(match["first"]), int(match["last"])) if match["first"] else (None, None)
        if first is not None and first > last:
            raise PastryError(f"{where}: {part!r} names layers {first} to {last}; wanted the lower one first")
        ends = [_number(number, f"{where}: λ of {match['group']}") for number in match["lam"].split("~")]
        if len(ends) > 2:
            raise PastryError(f"{where}: cannot read the gradient {match['lam']!r}; {_FORM}")
        rules.append(Rule(match["group"], first, last, ends[0], ends[-1]))
    return ModuleLambdas(text, tuple(rules))


def lambda_values(lam: Lambda) -> list[float]:
    """Every number that a λ consists of: one, or both ends of each rule."""
    return [end for rule in lam.rules for end in (rule.at_first, rule.at_last)] if isinstance(lam, ModuleLambdas) else [lam]


def per_tensor(lam: Lambda, names: Iterable[str], where: str) -> dict[str, float]:
    """λ of each tensor in `names`; PastryError beginning with `where` if it is not a number, or too large for float32."""
    lambdas = lam.per_tensor(names) if isinstance(lam, ModuleLambdas) else dict.fromkeys(names, lam)
    for found in lambdas.values():
        if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= MAX_LAMBDA:
            raise PastryError(f"{where} is {found!r}, wanted a finite number such as 0.8")
    return lambdas


def _number(text: str, where: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        raise PastryError(f"{where} is {text!r}, wanted a finite number such as 0.8")
    return float(text)
