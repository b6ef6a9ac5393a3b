"""Which servers have a registered version in memory: a tag of the version for each, taken away when the server stops."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pastry.errors import PastryError
from pastry.registry.client import connect, persist, plainly, registry_uri
from pastry.registry.resolve import same_weights, usable
from pastry.registry.store import STORED
from pastry.registry.versions import SERVED, Version
from pastry.vectors.files import read_json
from pastry.vectors.skill import MANIFEST_FILE


class Deployment:
    """A server's entry in the registry, from `record` to `withdraw`. One that was killed stays until its like starts again.

    Serving goes on without a registry, or with one that does not answer: `say` tells why nothing is recorded.

    Args:
        models: name in recipes → directory.
        uri: the registry's; None: MLFLOW_TRACKING_URI, and without it `runs/mlflow.db`.

    Raises:
        PastryError: one of the models is revoked.
    """

    def __init__(
        self, models: Mapping[str, Path], host: str, port: int, uri: str | None = None, say: Callable[[str], None] = print
    ):
        here = socket.gethostname() if host in ("127.0.0.1", "localhost", "::1", "0.0.0.0") else host
        self.endpoint, self.tag = f"http://{here}:{port}", f"{SERVED}{here}.{port}"
        self.given, self.say = uri, say
        self.versions: list[tuple[str, Version]] = []
        """With their names in recipes."""
        known = {name: fingerprint for name, path in models.items() if (fingerprint := _fingerprint(path))}
        self._try(lambda client: self.versions.extend((n, v) for n, f in known.items() for v in same_weights(f, client)))
        for name, version in self.versions:
            usable(version, f"{models[name]}, which is {version.uri}")

    def record(self) -> None:
        """Say in the registry that the models are served."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        for name, version in self.versions:
            said = json.dumps({"endpoint": self.endpoint, "since": since, "as": name})
            self._try(
                lambda client, at=version, said=said: client.set_model_version_tag(at.name, str(at.number), self.tag, said)
            )

    def withdraw(self) -> None:
        """Take that back."""
        for _, version in self.versions:
            self._try(lambda client, at=version: client.delete_model_version_tag(at.name, str(at.number), self.tag))

    def _try(self, action: Callable) -> None:
        try:
            uri = registry_uri(self.given)
        except PastryError:
            return  # without a registry there is nothing to keep up to date
        try:
            with plainly(uri):
                client = connect(uri)
                persist(lambda: action(client))
        except PastryError as error:
            self.say(f"the registry does not know of this server: {error}")


def _fingerprint(directory: Path) -> str | None:
    """What a directory says it is: a skill vector, or what came out of the store. None of others, whose tensors know it."""
    for file in (MANIFEST_FILE, STORED):
        if (directory / file).is_file():
            return read_json(directory / file)["fingerprint"]
    return None
