"""The report stage: collect what the stages left, write `report.html` and `result.json`."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pastry.evaluation.score import Score
from pastry.evaluation.statistics import paired_difference
from pastry.pipeline.stage import MARKER, TRAINING, Context
from pastry.registry.catalogue import Catalogue
from pastry.report.data import Deployment, LineageNode, ReportData, Row
from pastry.report.formatting import lam
from pastry.report.measured import Difference
from pastry.report.page import render
from pastry.report.plots import figures
from pastry.vectors.files import read_json, write_json
from pastry.vectors.inject import REPORT_FILE, InjectReport
from pastry.vectors.lora.factored import open_skill

PACKAGES = ("pastry", "ray", "torch", "transformers", "trl", "deepspeed", "mlflow", "datasets")
MEANINGS = {
    "base": "the base, which never read the target's documents",
    "target_sft": "after SFT on the target's documents",
    "past@1": "target SFT + 1.0 · skill vector",
    "past@best": "target SFT + λ · skill vector, λ chosen on validation questions",
    "past_1_round": "target SFT + 1.0 · the vector of round 1 alone (a part of the data and of the RL steps)",
    "pre_injection": "vector added to the base before the target's SFT",
    "prompted": "target SFT with recall forced by a prefix, no vector",
    "rl_on_target": "RL on the target's own questions, these among them: an upper reference",
    "control_random": "control: a random vector of the same norm",
    "control_sft_on_qa": "control: the vector of plain SFT on the source's questions and answers",
}
COSINE_TITLES = {
    "sft_target_rl": "target's ΔSFT against the skill vector",
    "sft_source_rl": "source's ΔSFT against the skill vector",
    "sft_sft": "source's ΔSFT against the target's",
}


def report(context: Context) -> dict[str, Any]:
    """Writes `report.html`, `result.json` and, for MLflow, the plots as PNG."""
    data = collect(context)
    (context.out / "report.html").write_text(render(data))
    left_out = {"domain", "cosine_tables", "curves", "injected", "stored", "lineage"}  # other files have them
    result = data.model_dump(exclude=left_out)
    result |= {"lambda_best": data.lambda_best, "skill": data.skill, "realised_ratio": data.injected.realised_ratio}
    write_json(context.out / "result.json", result)
    for name, figure in figures(data).items():
        picture = context.work / f"{name}.png"
        figure.savefig(picture, dpi=150)
        context.run.keep(picture, "plots")
    gain = data.best.gain
    chosen = data.lambda_best if isinstance(data.lambda_best, float) else lam(data.lambda_best)
    return {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "lambda_best": chosen}


def collect(context: Context) -> ReportData:
    """The page's data, from the stages' directories."""
    stages = {role.removeprefix("stage:"): path for role, path in context.inputs.items() if role.startswith("stage:")}
    markers = {name: read_json(path / MARKER) for name, path in stages.items()}
    config = context.config
    evaluation = read_json(stages["evaluate"] / "evaluation.json")
    injected = InjectReport.model_validate(read_json(stages["inject"] / "model" / REPORT_FILE))
    curves = {name: read_json(path / "curves.json")["points"] for name, path in stages.items()}
    gate = markers["gate"]["metrics"] if "gate" in markers else None
    registered = read_json(context.inputs["registered"] / "registered.json")
    catalogue = Catalogue(context.run.tracker.uri)
    skill, target = catalogue.show(registered["skill"]), catalogue.show(registered["target"])
    return ReportData(
        name=config.name,
        seed=config.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        versions={package: version(package) for package in PACKAGES},
        domain=config.domain,
        sources=config.sources,
        target=config.target,
        rounds=config.rounds,
        rows=_rows(evaluation),
        search=read_json(stages["search"] / "search.json"),
        ablation=read_json(stages["ablation"] / "ablation.json") if "ablation" in stages else None,
        matrix=read_json(stages["matrix"] / "matrix.json") if "matrix" in stages else None,
        cosines=evaluation["cosines"],
        cosine_tables={COSINE_TITLES[name]: table for name, table in evaluation["cosine_tables"].items()},
        curves={name: curves[name] for name, marker in markers.items() if marker["kind"] in TRAINING},
        seconds={name: marker["seconds"] for name, marker in markers.items()},
        gate={key: gate[key] for key in ("gate_passed", "gate_tries", "gate_wanted")} if gate else None,
        perplexity=evaluation["perplexity"],
        injected=injected,
        stored=open_skill(Path(injected.skills[0].path)).manifest.model_dump(),
        lineage=[
            LineageNode(
                stage=name,
                kind=marker["kind"],
                inputs=list(dict.fromkeys(marker["inputs"].values())),
                fingerprint=marker["metrics"].get("fingerprint"),
                run_id=marker["run_id"],
                seconds=marker["seconds"],
            )
            for name, marker in markers.items()
        ],
        registered=registered,
        aliases=skill.aliases,
        deployments=[
            Deployment(where=place["endpoint"], since=place["since"])
            for place in skill.served
            if place["endpoint"] in {other["endpoint"] for other in target.served}
        ],
    )


def _rows(evaluation: dict) -> list[Row]:
    scores = {row["name"]: Score(**row) for row in evaluation["rows"]}
    reference = scores["target_sft"].correct
    rows = []
    for name in MEANINGS:
        if name in scores:
            mean, low, high = paired_difference(scores[name].correct, reference)
            gain = None if name == "target_sft" else Difference(mean=mean, low=low, high=high)
            used = evaluation["lambda"].get(name)
            rows.append(Row(**scores[name].model_dump(), meaning=MEANINGS[name], lambda_=used, gain=gain))
    return rows


def _machine() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {pages / 2**30:.0f} GiB"
