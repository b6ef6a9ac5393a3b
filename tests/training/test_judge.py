"""The judge, against a real HTTP server that answers, dawdles, refuses and talks nonsense."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from pastry.config.rewards import JudgeSettings, RewardSettings
from pastry.domains.base import Question
from pastry.errors import PastryError
from pastry.training.completion import Completion, Failure
from pastry.training.judge import Judge, check_judge, judge_key
from pastry.training.rewards import Rewards
from tests.training.reward_domains import Tricky

ROOT = Path(__file__).resolve().parents[2]
SAYS = {"right": "Yes.", "wrong": "no", "babbles": "It depends.", "silent": ""}


class Endpoint:
    """An OpenAI-compatible endpoint. What it does is the last line but one of the prompt: the answer to judge."""

    def __init__(self):
        self.reset()
        app = FastAPI()
        app.post("/v1/chat/completions")(self.answer)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()

    def reset(self):
        self.requests, self.times, self.headers = [], [], []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def answer(self, request: Request, body: dict) -> Response:
        asked = body["messages"][-1]["content"].splitlines()[-3]
        with self.lock:
            self.requests.append(asked)
            self.times.append(time.monotonic())
            self.headers.append(dict(request.headers))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.behave(asked, first=self.requests.count(asked) == 1)
        finally:
            with self.lock:
                self.now -= 1

    def behave(self, asked: str, first: bool) -> Response:
        if asked == "limited" and first:
            return PlainTextResponse("slow down", 429, {"Retry-After": "1"})
        if (asked == "stumbles" and first) or asked == "broken":
            return PlainTextResponse("oh", 500)
        if (asked == "sleeps" and first) or asked == "hangs":
            time.sleep(1.0)
        if asked.startswith("busy"):
            time.sleep(0.15)
        if asked == "refused":
            return Response(json.dumps({"error": {"message": "no such model"}}), 404, media_type="application/json")
        if asked == "html":
            return Response("<html>", media_type="application/json")
        if asked == "empty":
            return Response("{}", media_type="application/json")
        text = SAYS.get(asked, "yes")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return Response(json.dumps(reply), media_type="application/json")

    def close(self):
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture(scope="module")
def server():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def endpoint(server):
    server.reset()
    return server


@pytest.fixture
def judge(endpoint, tmp_path):
    made = []

    def make(cache="judge.db", **settings):
        settings = {"url": endpoint.url, "model": "m", **settings}
        made.append(Judge(JudgeSettings(**settings), tmp_path / cache))
        return made[-1]

    yield make
    for one in made:
        one.close()


def asked(*texts):
    return [Completion(Question("q", "What is it?", "right"), text, True) for text in texts]


def test_yes_is_one_and_no_is_nought(judge, endpoint):
    assert judge().score(asked("right", "wrong", "right")) == [1.0, 0.0, 1.0]
    assert sorted(endpoint.requests) == ["right", "wrong"]  # the same twice is asked once


def test_an_empty_answer_is_wrong_without_asking(judge, endpoint):
    assert judge().score(asked("", " \n")) == [0.0, 0.0]
    assert endpoint.requests == []


@pytest.mark.parametrize("text", ["stumbles", "sleeps"])
def test_a_passing_failure_is_tried_again(judge, endpoint, text):
    assert judge(retries=1, timeout_seconds=0.7).score(asked(text)) == [1.0]
    assert endpoint.requests == [text] * 2
    assert endpoint.times[1] - endpoint.times[0] >= 0.3  # the client backs off 0.5 s less up to a quarter, at first


def test_back_off_grows(judge, endpoint):
    [failure] = judge(retries=2).score(asked("broken"))
    assert failure.kind == "judge" and "InternalServerError" in failure.cause
    first, second, third = endpoint.times
    assert third - second > second - first > 0.3


def test_a_time_out_is_a_failure(judge, endpoint):
    [failure] = judge(retries=1, timeout_seconds=0.5).score(asked("hangs"))
    assert failure.kind == "judge" and "APITimeoutError" in failure.cause
    assert endpoint.requests == ["hangs"] * 2


def test_retry_after_is_obeyed(judge, endpoint):
    assert judge(retries=1).score(asked("limited")) == [1.0]
    assert endpoint.times[1] - endpoint.times[0] >= 0.95


@pytest.mark.parametrize(
    ("text", "cause", "requests"),
    [
        ("babbles", "neither yes nor no: 'It depends.'", 1),
        ("silent", "neither yes nor no: ''", 1),
        ("html", "JSON", 1),
        ("empty", "not a chat completion", 1),
        ("refused", "NotFoundError.*no such model", 1),
        ("broken", "InternalServerError", 2),
    ],
)
def test_what_is_no_verdict_is_a_failure_and_is_not_kept(judge, endpoint, text, cause, requests):
    made = judge(retries=1)
    good, failure = made.score(asked("right", text))
    assert good == 1.0 and isinstance(failure, Failure) and failure.kind == "judge"
    assert re.search(cause, failure.cause)
    assert endpoint.requests.count(text) == requests
    made.score(asked("right", text))
    assert endpoint.requests.count(text) == 2 * requests and endpoint.requests.count("right") == 1


OTHER_PROCESS = """
import sys
from pathlib import Path
from pastry.config.rewards import JudgeSettings
from pastry.domains.base import Question
from pastry.training.completion import Completion
from pastry.training.judge import Judge
url, cache, model, *texts = sys.argv[1:]
judge = Judge(JudgeSettings(url=url, model=model), Path(cache))
print(judge.score([Completion(Question("q", "What is it?", "right"), text, True) for text in texts]))
"""


def test_the_cache_serves_other_processes_but_no_other_model(judge, endpoint, tmp_path):
    assert judge().score(asked("right", "wrong")) == [1.0, 0.0]

    def other(model, *texts):
        command = [sys.executable, "-c", OTHER_PROCESS, endpoint.url, str(tmp_path / "judge.db"), model, *texts]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    texts = [f"answer {index}" for index in range(20)]
    writers = [other("m", "right", "wrong", *texts) for _ in range(2)]  # both write the same rows at the same time
    assert [writer.communicate()[0].strip() for writer in writers] == [str([1.0, 0.0] + [1.0] * 20)] * 2
    assert endpoint.requests.count("right") == endpoint.requests.count("wrong") == 1
    before = len(endpoint.requests)
    assert judge().score(asked(*texts)) == [1.0] * 20
    assert len(endpoint.requests) == before
    assert judge(model="n").score(asked("right")) == [1.0]
    assert len(endpoint.requests) == before + 1


@pytest.mark.parametrize("concurrency", [1, 4])
def test_so_many_requests_at_a_time_and_no_more(judge, endpoint, concurrency):
    texts = [f"busy {index}" for index in range(8)]
    assert judge(concurrency=concurrency).score(asked(*texts)) == [1.0] * 8
    assert endpoint.most == concurrency


def test_a_spent_budget_fails_what_is_not_in_the_cache(judge, endpoint):
    made = judge(budget=3)
    first = made.score(asked("a", "b"))
    second = made.score(asked("b", "c", "d", "e"))
    assert first == [1.0, 1.0] and second[:2] == [1.0, 1.0]
    assert [failure.final for failure in second[2:]] == [True, True]
    assert second[2].cause == "the worker's budget of 3 questions is spent"
    assert sorted(endpoint.requests) == ["a", "b", "c"]


def test_the_key_is_sent_and_without_one_none(judge, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "somebody else's")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge(key_variable="JUDGE_KEY").score(asked("a"))
    judge(cache="other.db").score(asked("a"))
    assert [headers.get("authorization") for headers in endpoint.headers] == ["Bearer secret", None]


def test_what_cannot_work_is_said_at_set_up(endpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    settings = JudgeSettings(url=endpoint.url, model="m", retries=0)
    check_judge(settings)
    assert len(endpoint.requests) == 1
    unset = settings.model_copy(update={"key_variable": "JUDGE_KEY"})
    for check in (judge_key, check_judge):
        with pytest.raises(PastryError, match=r"rewards.judge.key_variable: .* JUDGE_KEY is not set"):
            check(unset)
    with pytest.raises(PastryError, match=r"rewards.judge: m at http://127.0.0.1:9/v1 does not judge: APIConnectionError"):
        check_judge(settings.model_copy(update={"url": "http://127.0.0.1:9/v1"}))
    with pytest.raises(PastryError, match=r"none/judge.db: cannot keep the judge's verdicts here"):
        Judge(settings, tmp_path / "none" / "judge.db")


def reward(endpoint, tmp_path, completions, **settings):
    """Score groups of two with the verifier and the judge. Gives the judge's term and the counts."""
    judge = {"url": endpoint.url, "model": "m", "retries": 0, "weight": 0.5}
    rewards = Rewards(
        Tricky(),
        RewardSettings(judge=judge, **settings),
        group_size=2,
        eos={1},
        cache=tmp_path / "judge.db",
    )
    counts = {}
    questions = [vars(Tricky().questions(1)[row // 2]) for row in range(len(completions))]
    columns = {"completion_ids": [[1]] * len(completions), "question": questions, "log_metric": counts.__setitem__}
    try:
        assert rewards.weights[-1] == 0.5
        terms = {function.__name__: function(completions=completions, **columns) for function in rewards.functions}
    finally:
        rewards.close()
    return terms["correct"], terms["judge"], counts


def test_a_judge_that_fails_does_what_the_policy_says(endpoint, tmp_path):
    batch = ["right", "wrong", "babbles", "right"]
    with pytest.raises(PastryError, match=r"question 'q1' has no reward: judge: neither yes nor no: 'It depends.'.*'babbles'"):
        reward(endpoint, tmp_path, batch)
    with pytest.raises(PastryError, match="neither yes nor no"):
        reward(endpoint, tmp_path, batch, on_failure="retry", attempts=3)
    assert endpoint.requests.count("babbles") == 1 + 3
    correct, judged, counts = reward(endpoint, tmp_path, batch, on_failure="drop_group")
    assert correct == judged == [1, 0, None, None]
    assert counts["failures/judge"] == 2 and counts["failures/dropped_groups"] == 1 and counts["failures/verifier_raised"] == 0


def test_a_groups_judge_is_not_asked_when_its_verifier_failed(endpoint, tmp_path):
    _, judged, counts = reward(endpoint, tmp_path, ["raise", "right", "right", "stumbles"], on_failure="drop_group")
    assert judged == [None, None, 1, 1] and counts["failures/judge"] == 1
    assert endpoint.requests.count("raise") == 0
