"""base → SFT → RL → vector → recipe → deployment, in both directions, from MLflow's runs and registered versions alone.

Every stage's run and every version says by fingerprint what it is and what it was made from. Everything is read at once, in
requests that grow with pages, not with runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue, pages
from pastry.registry.client import plainly
from pastry.registry.origin import origin
from pastry.registry.versions import FINGERPRINT, INPUTS, REGISTERED, Version

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNS = 1000
"""In one answer of the server."""


@dataclass
class Node:
    """One state of weights, one recipe, or one digest of data."""

    fingerprint: str
    made_by: list[dict[str, str]] = field(default_factory=list)
    """{"stage", "kind", "run"} of the stages that gave it."""
    versions: list[Version] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    """Role → fingerprint."""

    @property
    def label(self) -> str:
        """The shortest name people know it by."""
        if self.versions:
            return ", ".join(version.uri + "".join(f" @{alias}" for alias in version.aliases) for version in self.versions)
        if self.made_by:
            return self.made_by[0]["stage"]
        return "not in the registry"

    def document(self) -> dict[str, Any]:
        """For --json, without what it hangs together with."""
        served = [place for version in self.versions for place in version.served]
        revoked = {version.uri: version.revoked["reason"] for version in self.versions if version.revoked}
        facts = {"made_by": self.made_by, "versions": [version.uri for version in self.versions], "served": served}
        return {"fingerprint": self.fingerprint, "label": self.label} | facts | {"revoked": revoked}


class Lineage:
    """The graph of everything that a registry and its runs know."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self.nodes: dict[str, Node] = {}
        self.runs: dict[str, str] = {}
        """Id of a stage's run → fingerprint of what it gave."""
        for run in self._runs():
            tags = run.data.tags
            node = self._node(tags[FINGERPRINT])
            node.made_by.append({"stage": tags["pastry.stage"], "kind": tags["pastry.kind"], "run": run.info.run_id})
            node.inputs |= json.loads(tags[INPUTS])
            for known in (run.info.run_id, tags["pastry.stage_run"]):
                self.runs[known] = node.fingerprint
        for version in catalogue.list():
            if version.fingerprint:
                node = self._node(version.fingerprint)
                node.versions.append(version)
                node.inputs = version.facts.inputs | node.inputs
        for node in list(self.nodes.values()):
            node.inputs = {role: made for role, made in node.inputs.items() if made != node.fingerprint}
            for made in node.inputs.values():
                self._node(made)

    def find(self, what: str) -> Node:
        """The node that a models:/ URI, a directory, a fingerprint, a data digest or an MLflow run names."""
        if what.startswith(REGISTERED):
            return self.nodes[self.catalogue.show(what).fingerprint]
        if what in self.runs:
            return self.nodes[self.runs[what]]
        if Path(what).is_dir():
            found = origin(Path(what))
            return self.nodes.get(found.fingerprint) or Node(found.fingerprint, inputs=found.inputs)
        near = [key for key in self.nodes if key == what or (len(what) > 7 and re.sub("^[a-z0-9]+:", "", key).startswith(what))]
        if len(near) != 1:
            raise PastryError(
                f"{what}: {'several things begin so' if near else 'nothing in the registry is or was made from this'}; wanted "
                "models:/name@alias, a directory, a fingerprint (blake3:…), a data digest (sha256:…) or the id of a stage's run"
            )
        return self.nodes[near[0]]

    def made_from(self, node: Node) -> Iterator[tuple[str, Node]]:
        """(role, node) of what it was made from."""
        return ((role, self._node(made)) for role, made in node.inputs.items())

    def made_of(self, node: Node) -> Iterator[tuple[str, Node]]:
        """(role it plays there, node) of what was made of it."""
        for other in self.nodes.values():
            roles = [role for role, made in other.inputs.items() if made == node.fingerprint]
            if roles:
                yield ", ".join(roles), other

    def _node(self, fingerprint: str) -> Node:
        return self.nodes.setdefault(fingerprint, Node(fingerprint))

    def _runs(self) -> Iterator[Run]:
        client = self.catalogue.client
        with plainly(client.tracking_uri):
            places = [experiment.experiment_id for experiment in pages(client.search_experiments, RUNS)]

            wanted = f"tags.`{INPUTS}` != '' and tags.`{FINGERPRINT}` != '' and attributes.status = 'FINISHED'"
            yield from pages(partial(client.search_runs, places), RUNS, wanted)


def tree(lineage: Lineage, node: Node, neighbours, seen: set[str] | None = None) -> dict[str, Any]:
    """A node's document with "next": those that `neighbours` (made_from or made_of) gives, each with its "role"; one that
    stands elsewhere in the tree already is said once and marked "above"."""
    seen = set() if seen is None else seen
    if node.fingerprint in seen:
        return node.document() | {"above": True, "next": []}
    seen.add(node.fingerprint)
    following = [{"role": role} | tree(lineage, other, neighbours, seen) for role, other in neighbours(node)]
    return node.document() | {"above": False, "next": following}
