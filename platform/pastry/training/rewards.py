"""What RL rewards: reward functions for TRL from a verifier, an environment and a judge, and what is done when one fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed

from pastry.config.rewards import RewardSettings
from pastry.domains.base import Domain, Question
from pastry.errors import PastryError
from pastry.training.completion import Completion, Failure
from pastry.training.environments import Episode, episode_reward, guarded
from pastry.training.verifier import FINDINGS, Verifier

SHOWN_CHARACTERS = 500


@dataclass
class _Row:
    completion: Completion
    group: int
    episode: Episode | None
    terms: dict[str, float] = field(default_factory=dict)


class Rewards:
    """TRL's `functions` and their `weights`, and the `environment` to pass as its `environment_factory` (None: single-turn).

    One function a term: `correct`, `well_formed`, `lenient`; the verifier's modes, with weight 0, so that TRL logs their
    curves; `environment`; `judge`. The first to be called scores the batch for all. The data set's columns are `prompt` and
    `question`, a Question's fields; a batch is whole groups of `group_size` consecutive rows, as TRL's sampler makes them.

    A dropped group has None in every term: TRL gives it no advantage and leaves it out of the means it logs.
    TRL's log gets at every step, as sums over the workers, `failures/dropped_groups` and, counting every failed try,
    `failures/verifier_raised`, `…_timed_out`, `…_not_finite`, the same of `environment`, and `failures/judge`.

    `eos`: the token ids that end a completion. `cache`: the SQLite file of the judge's verdicts, which workers may share.
    The verifier's process starts at once and ends with `close()`. Raises PastryError for a judge without its API key, an
    environment that cannot be used, a domain that cannot be pickled; its functions do when scoring fails and no policy helps.
    """

    def __init__(self, domain: Domain, settings: RewardSettings, *, group_size: int, eos: set[int], cache: Path):
        self._settings, self._group_size, self._eos = settings, group_size, eos
        self._modes = domain.modes
        self._failures: Counter[str] = Counter()
        self._scored: tuple[list, list[dict | None]] | None = None
        self._rows: list[_Row] = []
        self.environment: type[Episode] | None = None
        self._judge = None
        self._scorers = [self._verify]
        self._counted = ["dropped_groups", "verifier_raised", "verifier_timed_out", "verifier_not_finite"]
        terms = {name: getattr(settings, name) for name in FINDINGS} | dict.fromkeys(domain.modes, 0.0)

        if make := domain.environment():
            self.environment = guarded(make, settings, self._failures)
            self._scorers.insert(0, self._end_episodes)
            self._counted += ["environment_raised", "environment_timed_out", "environment_not_finite"]
        if self.environment and self.environment.gives_reward:
            terms["environment"] = settings.environment
        elif settings.environment:
            raise PastryError(f"rewards.environment: domain '{domain.name}' has no environment with a get_reward; set it to 0")
        if settings.judge:
            from pastry.training.judge import Judge  # its client is a tenth of what a worker imports

            self._judge = Judge(settings.judge, cache)
            self._scorers.append(self._ask_the_judge)
            self._counted.append("judge")
            terms["judge"] = settings.judge.weight

        self.functions = [self._function(name) for name in terms]
        self.weights = list(terms.values())
        self._verifier = Verifier(domain, settings.timeout_seconds)

    def samples(self, most: int) -> list[dict[str, str | float]]:
        """Up to `most` completions of the last batch that was scored, with their terms: what a person wants to read."""
        return [
            {"question": row.completion.question.prompt, "completion": row.completion.text} | row.terms
            for row in self._rows[:most]
        ]

    def close(self) -> None:
        self._verifier.close()
        if self._judge:
            self._judge.close()

    def _function(self, name: str) -> Callable[..., list[float | None]]:
        def function(completions, **columns):
            if self._scored is None or self._scored[0] is not completions:
                self._scored = completions, self._score(completions, **columns)
            return [terms and terms[name] for terms in self._scored[1]]

        function.__name__ = name
        return function

    def _score(self, completions, completion_ids, question, log_metric, environments=None, **_) -> list[dict | None]:
        """The terms of each row, None in a dropped group."""
        episodes = environments or [None] * len(completions)
        rows = []
        for asked, completion, ids, episode in zip(question, completions, completion_ids, episodes, strict=True):
            scored = Completion(Question(**asked), _text(completion), finished=bool(ids) and ids[-1] in self._eos)
            rows.append(_Row(scored, group=len(rows) // self._group_size, episode=episode))
        dropped: set[int] = set()
        for scorer in self._scorers:
            left = [row for row in rows if row.group not in dropped]
            for row, outcome in zip(left, scorer(left), strict=True):
                if not isinstance(outcome, Failure):
                    row.terms |= outcome
                elif self._settings.on_failure == "drop_group":
                    dropped.add(row.group)
                else:
                    raise PastryError(_message(row.completion, outcome))
        self._failures["dropped_groups"] = len(dropped)
        workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        for kind in self._counted:
            log_metric(f"failures/{kind}", float(self._failures[kind] * workers))  # TRL logs the mean over the workers
        self._failures.clear()
        self._rows = [row for row in rows if row.group not in dropped]
        return [None if row.group in dropped else row.terms for row in rows]

    def _end_episodes(self, rows: list[_Row]) -> list[dict | Failure]:
        outcomes = [episode_reward(row.episode) for row in rows]
        return [outcome if isinstance(outcome, Failure) else {"environment": outcome} for outcome in outcomes]

    def _verify(self, rows: list[_Row]) -> list[dict | Failure]:
        def terms(verdict):
            found = {name: float(getattr(verdict, name)) for name in FINDINGS}
            return found | {mode: float(verdict.mode == mode) for mode in self._modes}

        outcomes = self._tried(self._verifier.score, rows)
        return [outcome if isinstance(outcome, Failure) else terms(outcome) for outcome in outcomes]

    def _ask_the_judge(self, rows: list[_Row]) -> list[dict | Failure]:
        outcomes = self._tried(self._judge.score, rows)
        return [outcome if isinstance(outcome, Failure) else {"judge": outcome} for outcome in outcomes]

    def _tried(self, score: Callable[[list[Completion]], list], rows: list[_Row]) -> list:
        """What `score` gives, failures asked again as often as the policy says."""
        outcomes: list = [None] * len(rows)
        asked = list(range(len(rows)))
        for _ in range(self._settings.tries):
            for index, outcome in zip(asked, score([rows[index].completion for index in asked]), strict=True):
                outcomes[index] = outcome
            failed = [index for index in asked if isinstance(outcomes[index], Failure)]
            self._failures.update(outcomes[index].kind for index in failed)
            asked = [index for index in failed if not outcomes[index].final]
        return outcomes


def _text(completion: str | list[dict]) -> str:
    """A completion's text; of a conversation the model's last message, "" when it ends with a tool's answer."""
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    return last.get("content") or "" if last["role"] == "assistant" else ""


def _message(completion: Completion, failure: Failure) -> str:
    text = completion.text
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return (
        f"question '{completion.question.id}' has no reward: {failure.kind.replace('_', ' ')}: {failure.cause}. Its text: "
        f"{shown!r}. rewards.on_failure says what to do then: raise, retry, or drop_group, which leaves the group out."
    )
