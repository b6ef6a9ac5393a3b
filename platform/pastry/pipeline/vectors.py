"""The extract and inject stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pastry.domains import load_domain
from pastry.pipeline.space import as_lambda, plain
from pastry.pipeline.stage import MARKER, Context
from pastry.vectors import extract as extracting
from pastry.vectors import inject as injecting
from pastry.vectors.files import read_json
from pastry.vectors.modules import Lambda


def skill_directory(stage: Path) -> Path:
    """The skill vector that an extract stage wrote."""
    return stage / "skill"


def winner(search: Path) -> tuple[Path, Lambda]:
    """The skill vector that a search stage chose, which may be a combination, and its λ."""
    return search / "winner", as_lambda(read_json(search / "search.json")["best"]["lambda"])


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
    """target + λ·v, written out as an ordinary checkpoint. λ is given, or the search's best with its vector."""
    lam = context.settings["lambda"]
    if lam == "search":
        skill, lam = winner(context.inputs["search"])
    else:
        skill = skill_directory(context.inputs["skill"])
    report = injecting.inject(context.model("target"), [(skill, lam)], context.out / "model")
    context.run.keep(context.out / "model" / injecting.REPORT_FILE)  # the ratio and the error of every tensor
    return {
        "fingerprint": report.fingerprint,
        "lambda": plain(lam),
        "realised_ratio": report.realised_ratio,
        "relative_error": report.relative_error,
        "rounding": report.rounding,
    }
