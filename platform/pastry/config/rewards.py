"""What RL rewards, and what happens when a reward cannot be had."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from pastry.config.strict import Strict


class JudgeSettings(Strict):
    """An LLM behind an OpenAI-compatible endpoint that says yes (1) or no (0) to a completion."""

    url: str
    """Base URL, for example http://127.0.0.1:8000/v1."""
    model: str
    key_variable: str | None = None
    """The environment variable that holds the API key; null: none is sent."""
    weight: FiniteFloat = 1.0
    timeout_seconds: float = Field(30.0, gt=0)
    """How long the endpoint may stay silent, to a request's first byte or between two."""
    retries: int = Field(3, ge=0)
    """After a time-out, a dropped connection, a 429 or a 5xx, with exponential back-off."""
    concurrency: int = Field(16, gt=0)
    """Requests under way at a time, a worker."""
    budget: int | None = Field(None, gt=0)
    """Questions a worker may put to the judge from the start of its process; answers from the cache cost nothing, a
    question's retries nothing more. When it is spent, every further question fails (`on_failure`). null: no limit."""


class RewardSettings(Strict):
    """A completion's reward: the weighted sum of what the verifier finds, an environment's reward and a judge's verdict."""

    correct: FiniteFloat = 1.0
    well_formed: FiniteFloat = 0.0
    lenient: FiniteFloat = 0.0
    """Weights of the verifier's findings; those of weight 0 are still logged."""
    environment: FiniteFloat = 0.0
    """Weight of the reward that the domain's environment gives an episode (its `get_reward`)."""
    judge: JudgeSettings | None = None
    on_failure: Literal["raise", "retry", "drop_group"] = "raise"
    """When a verifier, judge or environment raises, hangs or gives no number: stop; ask again, then stop; or ask again, then
    leave the question's whole group out of the step. Every failed try is counted in the metrics `failures/…`."""
    attempts: int = Field(2, ge=1)
    """Of `retry` and `drop_group`: how often a completion is scored, or an environment's step tried, at most."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For a verifier to score one completion, or an environment to take one step."""

    @property
    def tries(self) -> int:
        return 1 if self.on_failure == "raise" else self.attempts

    @model_validator(mode="after")
    def _some_weight(self):
        weights = [self.correct, self.well_formed, self.lenient, self.environment, self.judge.weight if self.judge else 0]
        if not any(weights):
            raise ValueError("every weight is 0: nothing would be rewarded")
        return self
