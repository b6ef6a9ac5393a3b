"""Reward functions: the terms, and what a verifier's failures do under each policy."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from pydantic import ValidationError

from pastry.config import LabSettings
from pastry.config.rewards import RewardSettings
from pastry.domains import load_domain
from pastry.errors import PastryError
from pastry.training.completion import Completion
from pastry.training.rewards import Rewards
from pastry.training.verifier import Verifier
from tests.training.reward_domains import Tricky

EOS = 1
SECONDS = 1.0
"""The verifier's time-out in these tests."""


@pytest.fixture
def rewards(tmp_path):
    """Rewards of a domain, two rows a group; what they log goes to `.logged`, and they are closed in the end."""
    made = []

    def make(domain, **settings):
        settings = RewardSettings.model_validate({"timeout_seconds": SECONDS, **settings})
        made.append(Rewards(domain, settings, group_size=2, eos={EOS}, cache=tmp_path / "judge.db"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def scored(rewards, completions, finished=None):
    """Call every function as TRL does. Gives term → scores, and metric → values logged."""
    finished = finished or [True] * len(completions)
    questions = [vars(Tricky().questions(1)[row // 2 % 4]) for row in range(len(completions))]
    logged = defaultdict(list)
    columns = {
        "prompts": [question["prompt"] for question in questions],
        "completion_ids": [[5, EOS if done else 5] for done in finished],
        "question": questions,
        "log_metric": lambda name, value: logged[name].append(value),
        "trainer_state": None,
    }
    terms = {function.__name__: function(completions=completions, **columns) for function in rewards.functions}
    return terms, {name: value for name, [value] in logged.items()}


NO_FAILURES = {
    f"failures/{kind}": 0 for kind in ("dropped_groups", "verifier_raised", "verifier_timed_out", "verifier_not_finite")
}


def test_terms_have_their_weights_and_one_completion_is_verified_once(rewards, tmp_path):
    made = rewards(Tricky(tmp_path / "tries"), correct=1.0, well_formed=0.2, lenient=0.1)
    assert made.weights == [1.0, 0.2, 0.1, 0.0, 0.0]
    terms, logged = scored(made, ["right", "wrong", "not right", "right"], [True, True, True, False])
    assert terms == {
        "correct": [1, 0, 0, 1],
        "well_formed": [1, 1, 1, 0],
        "lenient": [1, 0, 1, 1],
        "word": [1, 1, 0, 1],
        "other": [0, 0, 1, 0],
    }
    assert logged == NO_FAILURES
    assert (tmp_path / "tries").read_text().splitlines() == ["right", "wrong", "not right", "right"]
    assert scored(made, ["wrong"] * 4)[0]["correct"] == [0] * 4  # another batch is scored anew


def test_the_last_message_of_a_conversation_is_verified(rewards):
    call = {"role": "assistant", "content": "", "tool_calls": []}
    tool = {"role": "tool", "name": "look", "content": "right"}
    ended = [call, tool, {"role": "assistant", "content": "right"}]
    assert scored(rewards(Tricky()), [ended, [call, tool]])[0]["correct"] == [1, 0]


FAILURES = [
    ("raise", "verifier_raised", r"RuntimeError: the sandbox is gone \(.*reward_domains.py, line \d+\)"),
    ("die", "verifier_raised", "its process ended with exit code 7"),
    ("hang", "verifier_timed_out", "no verdict within 1 s"),
    ("nan", "verifier_not_finite", "correct must be true or false, found nan"),
    ("none", "verifier_not_finite", "correct must be true or false, found None"),
]


@pytest.mark.parametrize(("text", "kind", "cause"), FAILURES)
def test_raise_stops_and_names_question_completion_and_cause(rewards, text, kind, cause):
    with pytest.raises(PastryError, match=rf"question 'q1' .* {kind.replace('_', ' ')}: {cause}.*'{text}'"):
        scored(rewards(Tricky()), ["right", "wrong", "wrong", text])


@pytest.mark.parametrize(("text", "kind", "cause"), FAILURES)
def test_drop_group_leaves_the_whole_group_out_of_every_term(rewards, text, kind, cause):
    made = rewards(Tricky(), on_failure="drop_group", attempts=1)
    terms, logged = scored(made, ["right", "wrong", "right", text, "right", "wrong"])
    assert terms["correct"] == [1, 0, None, None, 1, 0]
    assert all(scores[2:4] == [None, None] and None not in scores[:2] + scores[4:] for scores in terms.values())
    assert logged == NO_FAILURES | {f"failures/{kind}": 1, "failures/dropped_groups": 1}


def test_several_failures_in_a_batch_are_each_found(rewards):
    made = rewards(Tricky(), on_failure="drop_group", attempts=1)
    terms, logged = scored(made, ["die", "slow", "slow", "right", "hang", "die", "right", "wrong"])
    assert terms["correct"] == [None, None, 0, 1, None, None, 1, 0]
    expected = {"verifier_raised": 2, "verifier_timed_out": 1, "dropped_groups": 2, "verifier_not_finite": 0}
    assert logged == {f"failures/{kind}": count for kind, count in expected.items()}


@pytest.mark.parametrize("policy", ["retry", "drop_group"])
def test_a_failure_that_passes_is_tried_again_and_counted(rewards, tmp_path, policy):
    made = rewards(Tricky(tmp_path / "tries"), on_failure=policy)
    terms, logged = scored(made, ["right", "once"])
    assert terms["correct"] == [1, 0]
    assert logged == NO_FAILURES | {"failures/verifier_raised": 1}
    assert (tmp_path / "tries").read_text().splitlines() == ["right", "once", "once"]  # no other completion again
    assert scored(made, ["right", "right"])[1] == NO_FAILURES  # counts are of a step


def test_retry_stops_after_so_many_attempts(rewards, tmp_path):
    with pytest.raises(PastryError, match="sandbox"):
        scored(rewards(Tricky(tmp_path / "tries"), on_failure="retry", attempts=3), ["right", "raise"])
    assert (tmp_path / "tries").read_text().splitlines() == ["right", "raise", "raise", "raise"]


def test_a_long_verification_of_many_is_no_hang():
    verifier = Verifier(Tricky(), timeout_seconds=0.5)
    rows = [Completion(Tricky().questions(1)[0], "slow", True)] * 20  # a second in all
    try:
        assert [verdict.correct for verdict in verifier.score(rows)] == [False] * 20
    finally:
        verifier.close()


def test_the_labs_verdicts_are_those_of_its_verifier(rewards):
    domain = load_domain("planet", LabSettings(kind="lab", entities=6), seed=0)
    questions = domain.questions(1)[:3]
    texts = [f"answer : {questions[0].answer}", "the x of y z is w . answer : nothing", "x"]
    made = rewards(domain)
    columns = {"completion_ids": [[EOS]] * 3, "question": [vars(q) for q in questions], "log_metric": lambda *_: None}
    found = {function.__name__: function(completions=texts, **columns) for function in made.functions}
    assert found["correct"] == [1, 0, 0] and found["recall"] == [0, 1, 0] and found["other"] == [0, 0, 1]


class Local(Tricky):
    def __init__(self):
        super().__init__()
        self.handle = lambda: None


def test_what_cannot_work_is_refused_at_once(tmp_path):
    def make(domain, **settings):
        Rewards(domain, RewardSettings(**settings), group_size=2, eos={EOS}, cache=tmp_path / "judge.db")

    with pytest.raises(PastryError, match=r"'tricky' cannot be sent to its verifier's process: .*lambda"):
        make(Local())
    with pytest.raises(PastryError, match=r"rewards.environment: domain 'tricky' has no environment"):
        make(Tricky(), environment=1.0)
    with pytest.raises(ValidationError, match="every weight is 0"):
        RewardSettings(correct=0)
    with pytest.raises(ValidationError, match="finite"):
        RewardSettings(correct=float("nan"))


ORPHAN = """
import sys
from pastry.training.completion import Completion
from pastry.training.verifier import Verifier
from tests.training.reward_domains import Tricky
if __name__ == "__main__":
    verifier = Verifier(Tricky(), 60)
    question = Tricky().questions(1)[0]
    verifier.score([Completion(question, "right", True)])
    print(verifier._process._process.pid, flush=True)
    verifier.score([Completion(question, "hang", True)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_hanging_verifier_does_not_outlive_a_killed_worker(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    worker = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    verifier = int(worker.stdout.readline())
    time.sleep(0.3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    for _ in range(100):
        status = Path(f"/proc/{verifier}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    os.kill(verifier, signal.SIGKILL)
    pytest.fail("the verifier lives on")
