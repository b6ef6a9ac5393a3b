"""What RL rewards, and what happens when a reward cannot be had."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pastry.config.strict import Strict


class JudgeSettings(Strict):
    """An LLM behind an OpenAI-compatible endpoint that says yes (1) or no (0) to a completion."""

    url: str
    """Base URL, for example http://127.0.0.1:8000/v1."""
    model: str
    key_variable: str | None = None
    """The environment variable that holds the API key; null: none is sent."""
    weight: float = 1.0
    timeout_seconds: float = Field(30.0, gt=0)
    """For one answer."""
    retries: int = Field(3, ge=0)
    """After a time-out, a dropped connection, a 429 or a 5xx, with exponential back-off."""
    concurrency: int = Field(16, gt=0)
    """Requests under way at a time, a worker."""
    budget: int | None = Field(None, gt=0)
    """Requests a worker may send in a stage, answers from the cache not counted; null: no limit."""


class RewardSettings(Strict):
    """A completion's reward: the weighted sum of what the verifier finds and of a judge's verdict."""

    correct: float = 1.0
    well_formed: float = 0.0
    lenient: float = 0.0
    """Weights of the verifier's findings; those of weight 0 are still logged."""
    judge: JudgeSettings | None = None
    on_failure: Literal["raise", "retry", "drop_group"] = "raise"
    """When a verifier, judge or environment raises, hangs or gives no number: stop; ask again, then stop; or ask again, then
    leave the question's whole group out of the step. Each is counted in the metrics `failures/…`."""
    attempts: int = Field(2, ge=1)
    """Of `retry` and `drop_group`: how often a completion is scored at most."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For a verifier to score one completion, or an environment to take one step."""

    @model_validator(mode="after")
    def _some_weight(self):
        if not (self.correct or self.well_formed or self.lenient or (self.judge and self.judge.weight)):
            raise ValueError("every weight is 0: nothing would be rewarded")
        return self
