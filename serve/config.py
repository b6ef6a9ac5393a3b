"""What the server serves, and within which limits."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from pastry.config import Strict, explain
from pastry.errors import PastryError
from pastry.registry.resolve import local_path

DEFAULT = Path(__file__).with_name("config.yaml")


class ServeConfig(Strict):
    """Targets and skills by the names that recipes use, and limits."""

    targets: dict[str, str] = Field(min_length=1)
    """Name → checkpoint directory or models:/ URI."""
    skills: dict[str, str] = {}
    """Name → skill vector directory or models:/ URI."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_tokens: int = Field(256, gt=0)
    """The most tokens a request may ask for."""
    max_prompt_tokens: int = Field(1024, gt=0)
    max_choices: int = Field(16, gt=0)
    """The largest n of a request."""
    lambda_low: float = -2.0
    lambda_high: float = 4.0
    """The λ a request may ask for."""
    max_batch: int = Field(32, gt=0)
    """Requests answered together when they name the same recipe."""
    batch_wait_s: float = Field(0.01, ge=0)
    replicas: int = Field(1, gt=0)
    cpus_per_replica: int = Field(1, gt=0)
    """Also its threads."""


def load_serve_config(path: Path | None) -> ServeConfig:
    """Read the server's YAML (None: the quickstart's models) and resolve every target and skill to a directory.

    Raises PastryError naming the file and the key.
    """
    path = path or DEFAULT
    try:
        tree = yaml.safe_load(path.read_text())
        config = ServeConfig.model_validate(tree)
    except FileNotFoundError:
        raise PastryError(f"{path}: no such file; serve/config.yaml is an example") from None
    except yaml.YAMLError as error:
        raise PastryError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise PastryError(f"{path}: {explain(error)}") from None
    return resolved(config, str(path))


def resolved(config: ServeConfig, where: str) -> ServeConfig:
    """The same with absolute directories, so that a replica anywhere on the machine finds them."""
    found: dict[str, dict[str, str]] = {}
    for group in ("targets", "skills"):
        found[group] = {}
        for name, text in getattr(config, group).items():
            try:
                found[group][name] = str(local_path(text).absolute())
            except PastryError as error:
                hint = " (make quickstart makes it)" if text.startswith("runs/quickstart/") else ""
                raise PastryError(f"{where}: {group}.{name}: {error}{hint}") from None
    return config.model_copy(update=found)
