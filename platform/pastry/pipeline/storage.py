"""Where runs lie."""

from __future__ import annotations

import os
from pathlib import Path

from pastry.config import PastConfig


def storage(config: PastConfig) -> Path:
    """The storage directory. A Ray job runs in a throw-away copy of its working directory: a relative path would be
    lost with it, so there it is taken from the home directory."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not config.storage.is_absolute():
        return Path.home() / "pastry" / config.storage
    return config.storage.absolute()
