"""The base of every group of settings: unknown keys refused, and errors a person can read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def explain(error: ValidationError) -> str:
    """A pydantic error as one readable message: key, what is wrong, what was found."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("lab", "files", "list", "range")) or "settings"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'")
        elif problem["type"] == "missing":
            lines.append(f"'{key}' is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if isinstance(problem["input"], dict | BaseModel) else f" (found {problem['input']!r})"
            lines.append(f"'{key}': {message}{found}")
    return "; ".join(lines)
