"""The MLflow server: where it is, a client that does not wait for minutes, and its errors in one line."""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from pastry.errors import PastryError

T = TypeVar("T")
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # seven would block for minutes; waiting is ours
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # into the progress bar, by a thread
}
"""Of this process, where the user has not set it."""
SQLITE = "sqlite:///"
DATABASE = Path("runs/mlflow.db")
"""The registry where nothing else is said."""
RACES = ("UNIQUE constraint", "duplicate key", "database is locked", "deadlock detected", "Giving up after")
"""What MLflow's databases say when two processes change the same thing at once: the second may simply try again."""
RACE_SECONDS = 30.0


def registry_uri(given: str | None = None, *, make: bool = False) -> str:
    """Of the registry: as given, else MLFLOW_TRACKING_URI, else `runs/mlflow.db`, which `make` allows to be made.

    Raises PastryError where there is none.
    """
    if uri := given or os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if make:
        DATABASE.parent.mkdir(exist_ok=True)
    elif not DATABASE.is_file():
        raise PastryError(f"no registry: {DATABASE} does not exist here; set MLFLOW_TRACKING_URI")
    return f"{SQLITE}{DATABASE.absolute()}"


def connect(uri: str) -> MlflowClient:
    """A client for tracking and registry. It fails at once, or after 20 s, where MLflow's own would try for minutes."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with _one_at_a_time(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """A client makes the tables of a new SQLite file, which two processes at once would fail at."""
    folder = Path(uri.removeprefix(SQLITE)).parent
    if not uri.startswith(SQLITE) or not os.access(folder, os.W_OK):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def artifact_place(uri: str) -> str | None:
    """Of a new experiment: beside an SQLite file, wherever the process was started; else as the server says."""
    return (Path(uri.removeprefix(SQLITE)).absolute().parent / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None


def explain(error: Exception, uri: str) -> str:
    """`MLflow at URI does not answer`, or the error it answers with, in a line."""
    if uri.startswith("http") and not isinstance(error, RestException | requests.HTTPError | PastryError):
        return f"MLflow at {uri} does not answer"
    said = str(error).splitlines() or [type(error).__name__]
    # SQLAlchemy buries what the database said among its own advice and the whole statement.
    return f"MLflow at {uri} answers with an error ({next((line for line in said if 'Error) ' in line), said[0])[:200]})"


@contextmanager
def plainly(uri: str) -> Iterator[None]:
    """What MLflow raises becomes a PastryError of one line."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise PastryError(f"{explain(error, uri)}; start it, or set MLFLOW_TRACKING_URI to the registry's address") from None


def persist(action: Callable[[], T]) -> T:
    """`action()`, again while other processes get in its way; it must be one that may be repeated."""
    deadline = time.monotonic() + RACE_SECONDS
    while True:
        try:
            return action()
        except MlflowException as error:
            if not any(race in str(error) for race in RACES) or time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.01, 0.2))
