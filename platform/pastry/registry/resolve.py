"""From what a user types to a directory: a path, a Hugging Face name, or a `models:/…` URI. The one place for it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from pastry.errors import PastryError
from pastry.registry.versions import FINGERPRINT, REGISTERED, Version, read_version

if TYPE_CHECKING:
    from mlflow import MlflowClient


def local_path(text: str, tracking_uri: str | None = None) -> Path:
    """The directory that `text` names.

    `models:/name@alias` and `models:/name/3` are looked up in the registry at `tracking_uri` (None: MLFLOW_TRACKING_URI,
    and without it `runs/mlflow.db`), fetched if they lie in an object store, and held against their digests.
    Raises PastryError for a missing path, model, version or alias, and for what is revoked or damaged.
    """
    if text.startswith(REGISTERED):
        from pastry.registry.store import local

        version = registered(text, tracking_uri)
        if version.recipe:
            raise PastryError(
                f"{text} is a recipe, not weights; to write it out: pastry vector inject --recipe {text} --out DIR"
            )
        return local(version.location, version.fingerprint, text)
    path = Path(text)
    if not path.is_dir():
        raise PastryError(f"{text}: no such directory; give a directory, or models:/name@alias for a registered one")
    return path


def registered(text: str, tracking_uri: str | None = None) -> Version:
    """What `models:/name@alias` or `models:/name/3` names. Raises PastryError if that is nothing, or revoked."""
    from pastry.registry.client import connect, plainly, registry_uri

    uri = registry_uri(tracking_uri)
    with plainly(uri):
        return usable(find(text, connect(uri)), text)


def usable(version: Version, text: str) -> Version:
    """The same; PastryError with the reason if it is revoked."""
    if version.revoked:
        raise PastryError(f"{text}: revoked on {version.revoked['at'][:10]}: {version.revoked['reason']}")
    return version


def find(text: str, client: MlflowClient) -> Version:
    """The version that a `models:/…` URI names, revoked or not. PastryError with near misses if there is none."""
    from mlflow.exceptions import MlflowException

    name, at, alias = text.removeprefix(REGISTERED).partition("@")
    name, slash, number = name.partition("/")
    if not text.startswith(REGISTERED) or not name or bool(at) == bool(slash) or (slash and not number.isdecimal()):
        plain = f"{REGISTERED}{name or 'NAME'}"
        raise PastryError(f"{text}: say which version: {plain}@champion or {plain}/1 (pastry vector list shows them)")
    try:
        found = client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise PastryError(f"{text}: not in the registry at {client.tracking_uri}: {_what_there_is(name, client)}") from None
    return read_version(found)


def same_weights(fingerprint: str, client: MlflowClient) -> list[Version]:
    """Every version with this fingerprint, under whatever name."""
    return [read_version(found) for found in client.search_model_versions(f"tags.`{FINGERPRINT}` = '{fingerprint}'")]


def _what_there_is(name: str, client: MlflowClient) -> str:
    """For a name, an alias or a version that does not exist."""
    aliases = {model.name: model.aliases for model in client.search_registered_models(max_results=1000)}
    if name in aliases:
        versions = sorted(int(found.version) for found in client.search_model_versions(f"name = '{name}'"))
        known = ", ".join(f"@{alias} ({number})" for alias, number in sorted(aliases[name].items())) or "none"
        return f"{name} has versions {', '.join(map(str, versions[-8:])) or 'none'}, aliases {known}"
    near = difflib.get_close_matches(name, aliases)
    return f"no model '{name}'; " + (f"did you mean {', '.join(near)}?" if near else "pastry vector list shows what there is")
