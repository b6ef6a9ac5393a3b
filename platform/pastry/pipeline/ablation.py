"""The ablation stage: where does the skill live? Each part of the winner injected alone, and left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pastry.domains import load_domain
from pastry.evaluation.measure import Bench, Items, Measurement, measure_jobs, proportion
from pastry.evaluation.statistics import paired_difference
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import winner
from pastry.pipeline.workers import most_workers
from pastry.vectors.files import read_json, write_json
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.modules import GROUPS, OUTSIDE_LAYERS, ModuleLambdas, Rule, layer_and_module, per_tensor

THIRDS = ("early", "middle", "late")


def ablation(context: Context) -> dict[str, Any]:
    """Writes `ablation.json`: gains on the target's test questions at the winner's λ, paired against the target alone."""
    settings, resources = context.settings, context.config.resources
    skill, lam = winner(context.inputs["search"])
    norms = {name: tensor.norm for name, tensor in open_skill(skill).manifest.tensors.items()}
    lambdas, groups = per_tensor(lam, norms, "λ"), module_groups(list(norms))
    items = Items(load_domain(settings["subject"], settings["domain"], settings["world_seed"]).questions(1, "test"))
    items = Items(items.questions[: settings["ablation"].questions])
    bench = Bench(context.model("target"), {"skill": skill}, settings, resources.cpus_per_worker)

    jobs = [({}, items), ({"skill": lam}, items)]
    for members in groups.values():
        inside = set(members)
        jobs += [({"skill": _only(lambdas, chosen)}, items) for chosen in (inside, lambdas.keys() - inside)]
    reference, full, *parts = measure_jobs(bench, jobs, resources, most_workers(resources))
    whole = math.fsum(norm**2 for norm in norms.values())
    rows = []
    for (group, members), only, without in zip(groups.items(), parts[::2], parts[1::2], strict=True):
        share = math.fsum(norms[name] ** 2 for name in members) / whole if whole else 0.0
        row = {"group": group, "tensors": len(members), "norm_share": share}
        rows.append(row | {"only": _gain(only, reference), "without": _gain(without, reference)})
    best = read_json(context.inputs["search"] / "search.json")["best"]
    document = {key: best[key] for key in ("lambda", "source")} | {"n": len(items.questions), "full": _gain(full, reference)}
    write_json(context.out / "ablation.json", document | {"groups": rows})
    return {f"gain/only/{row['group']}": row["only"]["gain"]["mean"] for row in rows}


def module_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Group → its tensors: by kind of module, and the tensors in layers by thirds of the depth. Empty groups are left out."""
    kinds: dict[str, list[str]] = {group: [] for group in (*GROUPS, *THIRDS)}
    layers = {name: int(layer) for name in names if (layer := layer_and_module(name)[0]) != OUTSIDE_LAYERS}
    depth = max(layers.values(), default=0) + 1
    for name in names:
        kind = next((group for group, form in GROUPS.items() if form.search(name)), None)  # the first that matches counts
        if kind:
            kinds[kind].append(name)
        if name in layers:  # a layer belongs to the third that its middle is in
            kinds[THIRDS[3 * (2 * layers[name] + 1) // (2 * depth)]].append(name)
    return {group: members for group, members in kinds.items() if members}


def _only(lambdas: Mapping[str, float], chosen: Iterable[str]) -> ModuleLambdas:
    """The winner's λ in the chosen tensors, and 0 in all others."""
    rules = [Rule(f"/^{re.escape(name)}$/", None, None, lambdas[name], lambdas[name]) for name in chosen]
    return ModuleLambdas(f"λ in {len(rules)} tensors", (*rules, Rule("all", None, None, 0.0, 0.0)))


def _gain(found: Measurement, reference: Measurement) -> dict[str, Any]:
    """Accuracy with its interval, and the paired gain over the target alone."""
    mean, low, high = paired_difference(found.correct, reference.correct)
    measured = {key: value for key, value in proportion(found.correct).items() if key != "n"}
    return measured | {"gain": {"mean": mean, "low": low, "high": high}}
