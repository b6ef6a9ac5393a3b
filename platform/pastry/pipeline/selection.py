"""The registry's skill vectors that a search asks for."""

from __future__ import annotations

from pastry.config.search import RegistrySelection
from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.resolve import registered
from pastry.registry.versions import Version


def selected(selection: RegistrySelection, tracking_uri: str) -> dict[str, Version]:
    """model@version → every selected vector, the newest version of the same weights.

    Raises PastryError for a registry that does not answer, a URI that names nothing or what is revoked, and tags that no
    vector has.
    """
    if selection.skills:
        versions = [registered(uri, tracking_uri) for uri in selection.skills]
    else:
        listed = Catalogue(tracking_uri).list(tags=selection.tags)
        versions = [version for version in listed if version.facts.kind == "skill" and not version.revoked]
    if not versions:
        tags = " and ".join(f"{key}: {value}" for key, value in selection.tags.items())
        raise PastryError(f"search.registry: no skill vector{' tagged ' * bool(tags) + tags} in the registry at {tracking_uri}")
    newest = {version.fingerprint: version for version in sorted(versions, key=lambda version: version.number)}
    return {f"{version.name}@{version.number}": version for version in newest.values()}
