"""The registry from Python: register, list, show, promote, revoke, pull. The commands are made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pastry.errors import PastryError
from pastry.registry import store as weights
from pastry.registry.client import connect, persist, plainly, registry_uri
from pastry.registry.resolve import find, same_weights, usable
from pastry.registry.versions import REVOKED, Gain, Version, read_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 10_000
"""Versions in one answer of the server …"""
MODELS = 1000
"""… and registered models: MLflow's limits."""


@dataclass(frozen=True)
class Promotion:
    """An alias that was moved."""

    version: Version
    alias: str
    before: int | None
    """The version that had the alias."""


@dataclass(frozen=True)
class Revocation:
    """A version that must not be used any more."""

    version: Version
    aliases: list[str]
    """Those that still point to it."""
    same: list[str]
    """URIs of other versions with the same weights, which are not revoked."""
    used_in: list[str]
    """URIs of recipes and vectors that were made with it."""


class Catalogue:
    """A registry of versions. Every method raises PastryError, of one line, for what is not there and if MLflow is not.

    Args:
        uri: MLflow's; None: MLFLOW_TRACKING_URI, and without it `runs/mlflow.db`.
        store: where weights go, a directory or s3://bucket/prefix; None: PASTRY_STORE, or `store` beside the SQLite file.
    """

    def __init__(self, uri: str | None = None, store: str | None = None):
        self.given, self.store = uri, store

    def register(
        self,
        directory: Path,
        *,
        name: str | None = None,
        alias: str | None = None,
        tags: dict[str, str] | None = None,
        description: str = "",
        gain: Gain | None = None,
        parent_run: str | None = None,
    ) -> Version:
        """A skill vector or checkpoint as a version; the same weights are the version they were."""
        from pastry.registry.register import register_directory

        uri = registry_uri(self.given, make=True)
        store = self.store or weights.default_store(uri)
        said = {"name": name, "alias": alias, "tags": tags, "description": description, "gain": gain}
        with plainly(uri):
            return register_directory(connect(uri), Path(directory), store, **said, parent_run=parent_run)

    def list(self, *, name: str | None = None, tags: dict[str, str] | None = None) -> list[Version]:
        """Every version, or those of a name and with these tags: by name, the newest first."""
        wanted = [f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items()]
        if name:
            wanted.append(f"name = '{name}'")
        if any(mark in text for text in (name or "", *(tags or {}), *(tags or {}).values()) for mark in "'`"):
            raise PastryError("a name, tag or value with ' or ` cannot be looked for")
        aliases: dict[tuple[str, str], list[str]] = {}
        with plainly(self.client.tracking_uri):
            for model in pages(self.client.search_registered_models, MODELS, f"name = '{name}'" if name else None):
                for alias, number in model.aliases.items():
                    aliases.setdefault((model.name, str(number)), []).append(alias)
            found = pages(self.client.search_model_versions, PAGE, " and ".join(wanted) or None)
            versions = [read_version(each, aliases.get((each.name, str(each.version)), [])) for each in found]
        return sorted(versions, key=lambda version: (version.name, -version.number))

    def show(self, uri: str) -> Version:
        """One version, revoked or not."""
        with plainly(self.client.tracking_uri):
            return find(uri, self.client)

    def promote(self, uri: str, alias: str) -> Promotion:
        """Have an alias name this version."""
        with plainly(self.client.tracking_uri):
            version = usable(find(uri, self.client), uri)
            before = self.client.get_registered_model(version.name).aliases.get(alias)
            persist(lambda: self.client.set_registered_model_alias(version.name, alias, str(version.number)))
            return Promotion(find(version.uri, self.client), alias, int(before) if before else None)

    def revoke(self, uri: str, reason: str) -> Revocation:
        """Have this version refused wherever it is used, with the reason. A second time changes nothing."""
        if not reason.strip():
            raise PastryError("a revocation needs a reason: whoever meets it will ask")
        with plainly(self.client.tracking_uri):
            version = find(uri, self.client)
            if not version.revoked:
                value = json.dumps({"reason": reason, "at": datetime.now(UTC).isoformat(timespec="seconds")})
                persist(lambda: self.client.set_model_version_tag(version.name, str(version.number), REVOKED, value))
                version = find(version.uri, self.client)
            twins = same_weights(version.fingerprint, self.client) if version.fingerprint else []
        same = [twin.uri for twin in twins if not twin.revoked]
        used_in = [each.uri for each in self.list() if not each.revoked and version.fingerprint in each.facts.inputs.values()]
        return Revocation(version, version.aliases, same, used_in)

    def pull(self, uri: str, out: Path) -> Version:
        """A verified copy of a version's weights in the new directory `out`."""
        with plainly(self.client.tracking_uri):
            version = usable(find(uri, self.client), uri)
        if version.recipe:
            raise PastryError(
                f"{uri} is a recipe, not weights; to write it out: pastry vector inject --recipe {uri} --out {out}"
            )
        weights.copy_out(weights.local(version.location, version.fingerprint, uri), out)
        return version

    @cached_property
    def client(self) -> MlflowClient:
        uri = registry_uri(self.given)
        with plainly(uri):
            return connect(uri)


def pages(search, size: int, wanted: str | None = None) -> Iterator:
    """Everything that one of MLflow's searches finds."""
    token = None
    while token != "":
        page = search(filter_string=wanted, max_results=size, page_token=token)
        yield from page
        token = page.token or ""
