"""The skill vectors of a search: the run's own, the registry's, and what is made of several."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from pastry.errors import PastryError
from pastry.pipeline.selection import selected
from pastry.pipeline.space import LINEAR, Candidate, candidates, own_vectors, shares
from pastry.pipeline.stage import Context
from pastry.pipeline.vectors import skill_directory
from pastry.registry.resolve import local_path
from pastry.vectors.algebra.combine import combine
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.files import read_json, write_json
from pastry.vectors.lora.factored import open_skill


def gather(context: Context) -> tuple[dict[str, Path], list[Candidate]]:
    """Name → directory of every vector that is tried, and all candidates. Combinations are written once, into `work`.

    Raises PastryError for a vector that was asked for by name and does not fit the target; one that a tag found is left out,
    and the user is told.
    """
    wanted = context.settings["search"]
    own = own_vectors(context.config)
    vectors = {name: skill_directory(context.inputs[f"skill:{name}"]) for name in own}
    registered = _registered(context, vectors.values())
    vectors |= registered
    found = candidates(own, registered, wanted)
    for candidate in found:
        if candidate.method not in ("single", LINEAR):
            vectors[candidate.name] = _combined(context, vectors, candidate)
    return vectors, found


def keep_winner(vectors: dict[str, Path], candidate: Candidate, point: dict, out: Path) -> str:
    """`out` becomes the winning vector: a link to a single one's directory, or the combination. Gives its fingerprint."""
    if candidate.method == LINEAR:
        weights = shares(point)
        combine([(vectors[name], weights[name]) for name in candidate.of], out, name=_name(candidate), method="sum")
    elif candidate.method == "single":
        out.symlink_to(os.path.relpath(vectors[candidate.name].resolve(), out.parent.resolve()))
    else:
        shutil.copytree(vectors[candidate.name], out)
    return open_skill(out).manifest.fingerprint


def _registered(context: Context, own: Iterable[Path]) -> dict[str, Path]:
    selection = context.settings["search"].registry
    if selection is None:
        return {}
    uri, chosen = context.run.tracker.uri, context.work / "registered.json"
    if not chosen.exists():  # else an earlier attempt chose: what was registered since does not change a search under way
        known = {open_skill(path).manifest.fingerprint for path in own}
        versions = {name: v.uri for name, v in selected(selection, uri).items() if v.fingerprint not in known}
        write_json(chosen, _fitting(context, versions, selection.skills))
    return {name: local_path(version, uri) for name, version in read_json(chosen).items()}


def _fitting(context: Context, versions: dict[str, str], by_name: list[str]) -> dict[str, str]:
    target, fitting = Checkpoint(context.model("target")), {}
    for name, version in versions.items():
        try:
            check_same_architecture(target, open_skill(local_path(version, context.run.tracker.uri)))
        except PastryError as error:
            if by_name:
                raise PastryError(f"search.registry.skills: {version} does not fit the target: {error}") from None
            context.say(f"{version} is left out: {error}")
        else:
            fitting[name] = version
    return fitting


def _combined(context: Context, vectors: dict[str, Path], candidate: Candidate) -> Path:
    out = context.work / "combined" / candidate.method
    if not out.exists():
        combine([(vectors[name], 1.0) for name in candidate.of], out, name=_name(candidate), method=candidate.method)
    return out


def _name(candidate: Candidate) -> str:
    """Of what recipes and the registry allow in a name."""
    return re.sub(r"[^\w.-]+", "-", "-".join([candidate.method, *candidate.of]))
