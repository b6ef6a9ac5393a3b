"""YAML and `key.subkey=value` overrides into settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pastry.config.run import PastConfig
from pastry.config.strict import explain
from pastry.errors import PastryError


def _override(tree: dict, assignment: str) -> None:
    path, separator, value = assignment.partition("=")
    if not separator or not path:
        raise PastryError(f"'{assignment}' is no override: write key=value, for example rl.steps=60")
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise PastryError(f"'{assignment}': '{parent}' holds a value, not a group of settings")
    try:
        tree[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise PastryError(f"'{assignment}': the value is not valid YAML") from None


def load_config(path: Path, overrides: list[str] = ()) -> PastConfig:
    """Read a run's YAML, apply `key.subkey=value` overrides, validate.

    Raises PastryError, naming the file, every offending key, what was found and what was wanted.
    """
    try:
        tree: Any = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise PastryError(f"{path}: no such file; jobs/quickstart.yaml is an example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PastryError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise PastryError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise PastryError(f"{path}: expected settings (key: value), found {type(tree).__name__}")
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return PastConfig.model_validate(tree)
    except ValidationError as error:
        raise PastryError(f"{path}: {explain(error)}") from None
