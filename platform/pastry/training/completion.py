"""A completion to score, and what comes instead of a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pastry.domains.base import Question

FailureKind = Literal[
    "verifier_raised",
    "verifier_timed_out",
    "verifier_not_finite",
    "judge",
    "environment_raised",
    "environment_timed_out",
    "environment_not_finite",
]


@dataclass(frozen=True)
class Completion:
    """What the model wrote about a question. In an episode of several turns: its last message."""

    question: Question
    text: str
    finished: bool
    """The model ended the sequence itself, it was not cut off."""


@dataclass(frozen=True)
class Failure:
    """Why a completion has no score."""

    kind: FailureKind
    cause: str
    final: bool = False
    """Asking again cannot help."""


def described(error: BaseException) -> str:
    """An exception in one line: type, text, and the place that raised it."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {error}{place}"
