"""What a directory holds and what that was made from, by fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pastry.errors import PastryError
from pastry.registry.versions import Kind
from pastry.vectors.architecture import BASE_FILE
from pastry.vectors.checkpoint import checkpoint_fingerprint
from pastry.vectors.files import read_json
from pastry.vectors.inject import REPORT_FILE
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.skill import MANIFEST_FILE, SkillManifest


@dataclass(frozen=True)
class Origin:
    """A skill vector's or a checkpoint's."""

    kind: Kind
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    """Role → fingerprint, or digest of data."""
    manifest: SkillManifest | None = None
    """A skill vector's."""


def origin(directory: Path, fingerprint: str | None = None) -> Origin:
    """As the directory's own documents tell; the tensors of a checkpoint are read if its `fingerprint` is not given.

    Raises PastryError if it is neither a skill vector nor a checkpoint.
    """
    if (directory / MANIFEST_FILE).exists():
        manifest = open_skill(directory).manifest
        parents = {"end": manifest.end, "start": manifest.start, "base": manifest.base, "data": manifest.data_digest}
        parents |= {f"skill {source.name}": source.fingerprint for source in manifest.sources}
        parents["control of"] = manifest.control_of
        return Origin("skill", manifest.fingerprint, {role: made for role, made in parents.items() if made}, manifest)
    if not (directory / "config.json").exists():
        raise PastryError(
            f"{directory}: neither {MANIFEST_FILE} nor config.json is here, so it is neither a skill vector nor a checkpoint"
        )
    fingerprint = fingerprint or checkpoint_fingerprint(directory)
    if (directory / REPORT_FILE).exists():
        report = read_json(directory / REPORT_FILE)
        parents = {f"skill {skill['name']}": skill["fingerprint"] for skill in report["skills"]}
        return Origin("checkpoint", fingerprint, {"target": report["target_fingerprint"]} | parents)
    base = read_json(directory / BASE_FILE)["base"] if (directory / BASE_FILE).exists() else None
    return Origin("checkpoint", fingerprint, {"base": base} if base else {})
