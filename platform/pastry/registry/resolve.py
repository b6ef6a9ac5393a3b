"""From what a user types to a directory: a path, a Hugging Face name, or a `models:/…` URI."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlparse

from pastry.errors import PastryError
from pastry.vectors.lora.factored import open_skill

REGISTERED = "models:/"
LOCATION = "pastry.uri"
"""Tag of a registered version: where its weights are."""
FINGERPRINT = "pastry.fingerprint"
"""Tag of a registered skill vector: what must be found there."""


def local_path(text: str, tracking_uri: str | None = None) -> Path:
    """The directory that `text` names.

    `models:/name@alias` and `models:/name/3` are looked up in the registry at `tracking_uri` (None: MLFLOW_TRACKING_URI,
    and without it `runs/mlflow.db`). Raises PastryError for a missing path, model, version or alias.
    """
    if text.startswith(REGISTERED):
        return _registered(text, tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _default())
    path = Path(text)
    if not path.is_dir():
        raise PastryError(f"{text}: no such directory; give a directory, or models:/name@alias for a registered one")
    return path


def _default() -> str:
    database = Path("runs/mlflow.db")
    if not database.is_file():
        raise PastryError(f"no registry: {database} does not exist here; set MLFLOW_TRACKING_URI")
    return f"sqlite:///{database.absolute()}"


def _registered(text: str, uri: str) -> Path:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(tracking_uri=uri)
    name, at, alias = text.removeprefix(REGISTERED).partition("@")
    try:
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, slash, number = name.partition("/")
            if not slash:
                raise PastryError(f"{text}: say which one: {text}@champion or {text}/1")
            version = client.get_model_version(name, number)
    except MlflowException as error:
        raise PastryError(f"{text}: not in the registry at {uri}: {error.message}") from None
    location = version.tags.get(LOCATION, version.source)
    source = urlparse(location)
    if source.scheme not in ("", "file"):
        raise PastryError(f"{text}: lies at {location}; only artifacts on a mounted file system can be read")
    path = Path(unquote(source.path))
    if not path.is_dir():
        raise PastryError(f"{text}: registered at {path}, where no directory is any more")
    wanted = version.tags.get(FINGERPRINT)
    if wanted:
        # The manifest's claim; the tensors are held against the manifest when they are read.
        found = open_skill(path).manifest.fingerprint
        if found != wanted:
            raise PastryError(f"{text}: registered as {wanted}, but {path} holds {found}; restore it or register it again")
    return path
