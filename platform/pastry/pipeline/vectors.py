"""The extract and inject stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pastry.domains import load_domain
from pastry.pipeline.stage import MARKER, Context
from pastry.vectors import extract as extracting
from pastry.vectors import inject as injecting
from pastry.vectors.files import read_json


def skill_directory(stage: Path) -> Path:
    """The skill vector that an extract stage wrote."""
    return stage / "skill"


def extract(context: Context) -> dict[str, Any]:
    """v = end − start, with the cosines to the SFT update start − base."""
    settings, subject = context.settings, context.settings["subject"]
    domain = load_domain(subject, settings["domain"], settings["world_seed"])
    manifest = extracting.extract(
        context.model("end"),
        context.model("start"),
        skill_directory(context.out),
        name=settings["name"],
        base=context.model("base"),
        domain=subject,
        data_digest=domain.data_digest(settings["part"], derived=context.config.sft.second is not None),
        seed=settings["world_seed"],
        training_run=read_json(context.inputs["end"] / MARKER)["run_id"],
        lambda_advice=settings["lambda_advice"],
    )
    return {"fingerprint": manifest.fingerprint, "norm": manifest.norm, "cosine_to_sft": manifest.cosine_to_sft}


def inject(context: Context) -> dict[str, Any]:
    """target + λ·v, written out as an ordinary checkpoint. λ is given, or the search's best with its source."""
    lam, role = context.settings["lambda"], "skill"
    if lam == "search":
        found = read_json(context.inputs["search"] / "search.json")["best"]
        lam, role = found["lambda"], f"skill:{found['source']}"
    report = injecting.inject(context.model("target"), [(skill_directory(context.inputs[role]), lam)], context.out / "model")
    context.run.keep(context.out / "model" / injecting.REPORT_FILE)  # the ratio and the error of every tensor
    return {
        "fingerprint": report.fingerprint,
        "lambda": lam,
        "realised_ratio": report.realised_ratio,
        "relative_error": report.relative_error,
        "rounding": report.rounding,
    }
