"""Domains whose verifier and environment fail as they are told. In a file of its own: the verifier's process imports it."""

import os
import re
import time
from dataclasses import replace
from pathlib import Path

from pastry.domains.base import Domain, Question, ToolError, Verdict


def hang() -> None:
    """For years, with the interpreter's lock held."""
    re.fullmatch(r"(a+)+b", "a" * 64)


class Tricky(Domain):
    """`tries`: a file in which every call of the verifier leaves a line."""

    name, parts, modes = "tricky", 1, ("word", "other")

    def __init__(self, tries: Path | None = None):
        self.tries = tries

    def documents(self, part):
        return []

    def sft_epoch(self, part, rng):
        return []

    def answers_epoch(self, part, rng):
        return []

    def derived_epoch(self, part, rng):
        return []

    def prompted(self, question):
        return question.prompt, ""

    def data_digest(self, part):
        return "none"

    def questions(self, part, split=None):
        return [Question(f"q{index}", f"ask {index}", "right") for index in range(4)]

    def verify(self, question, completion, finished):
        if self.tries:
            with self.tries.open("a") as file:
                file.write(f"{completion}\n")
        verdict = Verdict(completion == "right", finished, "word" if completion.isalpha() else "other", "right" in completion)
        match completion:
            case "raise":
                raise RuntimeError("the sandbox is gone")
            case "hang":
                hang()
            case "die":
                os._exit(7)
            case "slow":
                time.sleep(0.05)
            case "nan":
                return replace(verdict, correct=float("nan"))
            case "none":
                return None
            case "once" if self.tries.read_text().split().count("once") == 1:
                raise OSError("try again")
        return verdict


class Broken(Tricky):
    """Odd completions are right. Question q1 is never answered rightly, and if it is `broken` odd completions raise."""

    name = "broken"

    def __init__(self, broken: bool = True):
        super().__init__()
        self.broken = broken

    def questions(self, part, split=None):
        return super().questions(part)[:2]

    def verify(self, question, completion, finished):
        odd = sum(completion.encode()) % 2
        if question.id == "q1":
            completion = "raise" if self.broken and odd else "right" if self.broken else "wrong"
        else:
            completion = "right" if odd else "wrong"
        return super().verify(question, completion, finished)


class Guessing:
    """A number is to be guessed; what goes wrong meanwhile is what the question asks for."""

    def __init__(self):
        self.raised = False

    def __len__(self):
        return 0  # such an environment is false, and is there all the same

    def reset(self, question: dict, **_) -> str | None:
        self.ordered, self.solved = question["prompt"], False
        self._fail("reset")
        return None

    def _fail(self, step: str) -> None:
        match self.ordered.removeprefix(f"{step} "):
            case "raises":
                raise RuntimeError("the room is on fire")
            case "raises once" if not self.raised:
                self.raised = True
                raise RuntimeError("the room is on fire")
            case "hangs":
                time.sleep(3)
            case "locks":
                hang()
            case "objects":
                raise ToolError("not allowed")

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: The number guessed.
        """
        self._fail("guess")
        self.solved = number == 7
        return "right" if self.solved else "wrong"

    def get_reward(self) -> float:
        self._fail("get_reward")
        odd = {"get_reward nan": float("nan"), "get_reward none": None}
        return odd.get(self.ordered, float(self.solved))


class GuessingDomain(Tricky):
    name = "guessing"

    def __init__(self, *orders: str):
        super().__init__()
        self.orders = orders

    def questions(self, part, split=None):
        return [Question(f"q{index}", order, "right") for index, order in enumerate(self.orders)]

    def environment(self):
        return Guessing
