"""What to do next, in words and commands: one small rule a finding, each with the number it follows from."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from pastry.report.data import ReportData
from pastry.report.formatting import decimals, interval, lam, percent, points
from pastry.vectors.inject import NEAREST_IS_ENOUGH
from pastry.vectors.modules import GROUPS

ALIAS = "champion"
"""Of the version that is to be used."""
ENOUGH_ALONE = 0.9
"""Share of the whole vector's gain from which a module group alone is worth trying instead."""
PERPLEXITY_RISE = 0.05
"""Relative increase on the target's documents that is worth a warning."""


@dataclass(frozen=True)
class Advice:
    """One thing to do."""

    kind: Literal["mend", "do", "measure"]
    """mend: before the result is trusted; do: what it supports; measure: what this run did not ask."""
    text: str
    command: str | None
    panel: str | None = None
    """Id of the section with the evidence, if there is one."""


def gate_missed(data: ReportData) -> Advice | None:
    if not data.gate or data.gate["gate_passed"]:
        return None
    steps = max((point["steps"] for point in data.curves.get("pretrain", []) if "steps" in point), default=0)
    text = "The base missed its gate, so RL may have strengthened guessing instead of the skill: pre-train it longer."
    return Advice("mend", text, f"pastry run CONFIG pretrain.steps={round(1.5 * steps) or 'MORE'}", "results")


def not_all_arrived(data: ReportData) -> Advice | None:
    ratio = data.injected.realised_ratio
    if ratio is None or ratio >= NEAREST_IS_ENOUGH:
        return None
    text = f"Rounding to {data.injected.dtype} kept only {percent(ratio)} % of λ·v: write the model so that all of it arrives."
    way = "--rounding stochastic" if data.injected.dtype == "bfloat16" else "--dtype float32"
    skill = f"{data.injected.skills[0].path}:{lam(data.lambda_best)}"
    return Advice("mend", text, f"{_inject(data.injected.target, skill)} {way}", "precision")


def over_fitted(data: ReportData) -> Advice | None:
    found = data.search.confirmation
    if not found or not found.overfit:
        return None
    text = (
        f"The search over-fitted its {found.validation.n} validation questions: {percent(found.validation.accuracy)} % there, "
        f"{percent(found.fresh.accuracy)} % on fresh ones. Trust the fresh number, and choose on more validation questions"
        f"{': add some to your files, or use a larger share of them' if data.domain.kind == 'files' else ''}."
    )
    if data.domain.kind == "files":
        more = f"validation_share={min(0.8, 1.5 * data.domain.validation_share):.2g}"
    else:
        more = f"entities={2 * data.domain.entities}"
    return Advice("mend", text, f"pastry run CONFIG domain.{more}", "confirmation")


def control_moved(data: ReportData) -> Advice | None:
    moved = [row for row in data.rows if row.name.startswith("control_") and row.gain and row.gain.low > 0]
    if not moved:
        return None
    named = " and ".join(f"{row.name} ({points(row.gain.mean)} points)" for row in moved)
    text = f"{named} gained, too: that much of the claimed gain is not the skill. Look at well-formed answers and modes first."
    return Advice("mend", text, None, "results")


def documents_forgotten(data: ReportData) -> Advice | None:
    if not {"target_sft", "past@best"} <= data.perplexity.keys():
        return None
    rise = data.perplexity["past@best"] / data.perplexity["target_sft"] - 1
    if rise < PERPLEXITY_RISE:
        return None
    text = f"Injection raised the perplexity of {data.target}’s documents by {percent(rise)} %: let the search pay for that."
    return Advice("mend", text, "pastry run CONFIG search.penalties.perplexity=1", "precision")


def edge_of_the_range(data: ReportData) -> Advice | None:
    best, tried = data.lambda_best, sorted({point.lambda_ for point in data.search.points} - {0.0})
    if isinstance(best, dict) or len(tried) < 2 or best not in (tried[0], tried[-1]):
        return None
    beyond = [best / 4, best / 2] if best == tried[0] > 0 else [1.5 * best, 2 * best]
    text = f"The best λ, {lam(best)}, is at the edge of what was tried ({lam(tried[0])} to {lam(tried[-1])}): widen the range."
    wider = ", ".join(lam(value) for value in sorted([*tried, *beyond]))
    return Advice("do", text, f"pastry run CONFIG 'search.lambdas=[{wider}]'", "lambda")


def promote(data: ReportData) -> Advice | None:
    skill = data.registered.get("skill")
    if data.best.gain.low <= 0:
        return None
    if not skill:
        text = f"{_claim(data)}, but nothing of this run is registered: finish it."
        return Advice("do", text, "pastry run CONFIG", "results")
    if ALIAS in data.aliases:
        return Advice("do", f"{_claim(data)}: rightly {ALIAS}. Read its card.", f"pastry vector show {skill}", "results")
    return Advice("do", f"{_claim(data)}: promote the skill.", f"pastry vector promote {skill} {ALIAS}", "results")


def do_not_promote(data: ReportData) -> Advice | None:
    gain = data.best.gain
    if gain.low > 0:
        return None
    found = f"{_claim(data)}, {'so the skill hurts here' if gain.high < 0 else 'which includes 0'}: do not promote it"
    if ALIAS not in data.aliases:
        return Advice("mend", f"{found}; try another source.", "pastry run CONFIG 'sources=[OTHER]'", "results")
    reason = shlex.quote(f"{points(gain.mean)} points on {data.target} ({interval(gain)})")
    text = f"{found}. It is {ALIAS} now: give that alias to another version, or revoke this one."
    return Advice("mend", text, f"pastry vector revoke {data.registered['skill']} --reason {reason}", "results")


def serve(data: ReportData) -> Advice | None:
    if data.best.gain.low <= 0 or "recipe" not in data.registered:
        return None
    text = f"Serve {data.registered['recipe']}: an OpenAI-compatible API in which the model’s name says the skill and λ."
    return Advice("do", text, "pastry serve", "lineage")


def use_elsewhere(data: ReportData) -> Advice | None:
    if data.best.gain.low <= 0 or "skill" not in data.registered:
        return None
    text = "Use the skill in another model of the same base: an ordinary checkpoint."
    return Advice("do", text, _inject("T", f"{data.registered['skill']}:{lam(data.lambda_best)}"), "precision")


def one_group_is_enough(data: ReportData) -> Advice | None:
    found, skill = data.ablation, data.registered.get("skill")
    if not found or not skill or isinstance(found.lambda_, dict) or found.full.gain.low <= 0:
        return None
    enough = [g for g in found.groups if g.group in GROUPS and g.only.gain.mean >= ENOUGH_ALONE * found.full.gain.mean]
    if not enough:
        return None
    least = min(enough, key=lambda group: group.norm_share)
    text = (
        f"{least.group.capitalize()} alone gains {points(least.only.gain.mean)} of {points(found.full.gain.mean)} points with "
        f"{percent(least.norm_share)} % of ‖v‖²: inject only that, it changes less of the target."
    )
    return Advice("do", text, _inject("T", f"{skill}:{least.group}={lam(found.lambda_)},all=0"), "ablation")


def rank_before_paying(data: ReportData) -> Advice | None:
    agreed = [signal for signal in data.matrix.signals if signal.agreement.verdict == "agreed"] if data.matrix else []
    if not agreed:
        return None
    best = max(agreed, key=lambda signal: signal.agreement.rho)
    text = (
        f"The signal {best.name} ranked sources as the measured gains did (ρ = {decimals(best.agreement.rho, 2)}, "
        f"n = {best.agreement.n}): rank new sources by it before RL is paid for."
    )
    return Advice("do", text, "pastry rank CONFIG", "sources")


def another_seed(data: ReportData) -> Advice:
    text = "One seed says nothing about the spread between seeds: run the same configuration with another."
    return Advice("measure", text, f"pastry run CONFIG seed={data.seed + 1}")


def not_confirmed(data: ReportData) -> Advice | None:
    if data.search.confirmation:
        return None
    text = "The choice of source and λ was not confirmed on fresh questions: search again, which now ends with that."
    return Advice("measure", text, "pastry search CONFIG")


def no_retention(data: ReportData) -> Advice | None:
    if any(trial.retention for trial in data.search.trials):
        return None
    text = "Whether injection breaks what the model knew before was not measured: give questions about that."
    return Advice("measure", text, "pastry run CONFIG search.retention_file=QUESTIONS.jsonl")


def no_ablation(data: ReportData) -> Advice | None:
    if data.ablation:
        return None
    text = "Where the skill lives is not known: inject each module group alone, and leave each out."
    return Advice("measure", text, "pastry run CONFIG 'ablation={}'")


def no_matrix(data: ReportData) -> Advice | None:
    if data.matrix:
        return None
    text = "Other targets, and what predicts a good source, were not asked: measure every source in every target."
    return Advice("measure", text, "pastry run CONFIG 'matrix.targets=[DOMAIN, DOMAIN]'")


RULES = (
    gate_missed,
    promote,
    do_not_promote,
    over_fitted,
    control_moved,
    not_all_arrived,
    documents_forgotten,
    serve,
    use_elsewhere,
    edge_of_the_range,
    one_group_is_enough,
    rank_before_paying,
    another_seed,
    not_confirmed,
    no_retention,
    no_ablation,
    no_matrix,
)


def advise(data: ReportData) -> list[Advice]:
    """What the numbers ask for: first what to mend, then what to do, then what to measure."""
    found = [advice for rule in RULES if (advice := rule(data))]
    return sorted(found, key=lambda advice: ("mend", "do", "measure").index(advice.kind))


def _claim(data: ReportData) -> str:
    gain = data.best.gain
    return f"The gain on the test questions is {points(gain.mean)} points (95 % interval {interval(gain)})"


def _inject(target: str, skill: str) -> str:
    return f"pastry vector inject --target {shlex.quote(target)} --skill {shlex.quote(skill)} --out DIR"
