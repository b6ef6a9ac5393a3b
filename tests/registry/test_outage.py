"""The MLflow server goes away in the middle, or the run does: everything is there once in the end."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry import tracking
from pastry.registry.outbox import waiting
from pastry.registry.tracking import Tracker
from tests.registry.test_tracking import ignore, stages

pytestmark = pytest.mark.slow
KILLED = """
import sys, time
from pathlib import Path
from pastry.config import Tracking
from pastry.registry.tracking import Tracker

url, storage = sys.argv[1], Path(sys.argv[2])
tracker = Tracker(Tracking(uri=url, experiment="killed"), storage, "run", {})
stage = tracker.stage("killed", "sft", {}, lambda point: None, storage / "work")
stage.run_id
for step in range(1, 1001):
    stage.log({"step": step, "steps": 1200, "loss": 1 / step})
print("logged", flush=True)
time.sleep(600)
"""


def points(tracker, run, key="loss"):
    """(step, value) of a metric as MLflow has them."""
    return [(point.step, point.value) for point in tracker.client.get_metric_history(run.info.run_id, key)]


def run_through(tracker, work, server):
    """A run that loses its server in one stage, begins another without it and ends, tracked or not."""
    sft = tracker.stage("sft", "sft", {"lr": "1"}, ignore, work / "sft")
    for step in range(1, 101):
        if step == 50:
            tracker.outbox.settle(180)
            server.stop()
        sft.log({"step": step, "steps": 100, "loss": 1 / step})
    sft.samples(100, [{"prompt": f"p{n}", "completion": "c", "reward": n / 2} for n in range(3)])
    (work / "notes.txt").write_text("kept")
    sft.keep(work / "notes.txt", "papers")
    (work / "notes.txt").unlink()
    sft.end({"seconds": 5.0}, {"pastry.digest": "d"}, "FINISHED")
    rl = tracker.stage("rl", "rl", {}, ignore, work / "rl")
    for step in range(1, 11):
        rl.log({"step": step, "steps": 10, "loss": float(step)})
    assert len(rl.run_id) == 32, "without a server it is the tag"
    rl.end({}, {}, "FINISHED")
    tracker.finish({"seconds/sft": 5.0}, [])


def complete(tracker, folder):
    """Everything of `run_through` is in MLflow, once and in order."""
    runs = stages(tracker)
    assert {run.info.status for run in runs.values()} == {"FINISHED"} and runs["sft"].data.tags["pastry.digest"] == "d"
    assert points(tracker, runs["sft"]) == [(step, 1 / step) for step in range(1, 101)]
    assert points(tracker, runs["rl"]) == [(step, float(step)) for step in range(1, 11)]
    client, run_id = tracker.client, runs["sft"].info.run_id
    assert Path(client.download_artifacts(run_id, "papers/notes.txt", str(folder))).read_text() == "kept"
    table = json.loads(Path(client.download_artifacts(run_id, "completions/step-000100.json", str(folder))).read_text())
    rows = [["p0", "c", 0.0], ["p1", "c", 0.5], ["p2", "c", 1.0]]
    assert table == {"columns": ["prompt", "completion", "reward"], "data": rows}
    listed = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "completions/step-000100.json", "type": "table"}]
    whole = client.get_run(tracker.delivery.ids[tracker.run])
    assert whole.info.status == "FINISHED"
    assert runs["rl"].data.tags["mlflow.parentRunId"] == whole.info.run_id


def test_the_server_is_stopped_in_the_middle_and_comes_back(server, tmp_path):
    said = []
    with Tracker(Tracking(uri=server.url, experiment="back"), tmp_path, "run", {}, said.append) as tracker:
        run_through(tracker, tmp_path, server)
        spool = (tmp_path / "run/tracking/outbox.jsonl").read_bytes()
        server.start()
        assert tracker.outbox.settle(180)
        complete(tracker, tmp_path)
    assert len(said) == 2 and "does not answer; the run goes on" in said[0] and "answers again" in said[1]
    # As if it had been killed with everything delivered and nothing struck off.
    (tmp_path / "run/tracking/outbox.jsonl").write_bytes(spool)
    with Tracker(Tracking(uri=server.url, experiment="back"), tmp_path, "run", {}, said.append) as tracker:
        tracker.finish({}, [])
    complete(tracker, tmp_path)
    assert len(said) == 2 and not waiting(tmp_path / "run")


def test_what_a_run_could_not_deliver_the_next_start_does(server, tmp_path):
    said = []
    with Tracker(Tracking(uri=server.url, experiment="later"), tmp_path, "run", {}, said.append) as tracker:
        run_through(tracker, tmp_path, server)
    assert "records wait in" in said[-1] and "does not answer" in said[-1] and waiting(tmp_path / "run")
    with Tracker(Tracking(uri=server.url, experiment="later"), tmp_path, "run", {}, said.append):
        pass  # still away: the start is not held up
    server.start()
    with Tracker(Tracking(uri=server.url, experiment="later"), tmp_path, "run", {}, said.append) as tracker:
        tracker.finish({}, [])
    complete(tracker, tmp_path)
    assert not waiting(tmp_path / "run")


def test_a_killed_run_is_gone_on_with_and_nothing_is_there_twice(server, tmp_path):
    command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "logged\n"
        process.send_signal(signal.SIGKILL)
    assert waiting(tmp_path / "run"), "the kill came while points were on their way"
    with Tracker(Tracking(uri=server.url, experiment="killed"), tmp_path, "run", {}) as tracker:
        assert tracker.outbox.settle(180) and stages(tracker)["killed"].info.status == "KILLED"
        stage = tracker.stage("killed", "sft", {}, ignore, tmp_path / "work")
        for step in range(901, 1201):
            stage.log({"step": step, "steps": 1200, "loss": 1 / step})
        stage.end({}, {}, "FINISHED")
    assert points(tracker, stages(tracker)["killed"]) == [(step, 1 / step) for step in range(1, 1201)]
    assert [point["step"] for point in stage.curves] == list(range(1, 1201))
    assert stages(tracker)["killed"].info.status == "FINISHED"


def test_registering_waits_for_the_server(server, tmp_path, monkeypatch):
    said = []
    with Tracker(Tracking(uri=server.url, experiment="waits"), tmp_path, "run", {}, said.append) as tracker:
        tracker.outbox.settle(180)
        server.stop()
        stage = tracker.stage("register", "register", {}, ignore, tmp_path / "work")
        with monkeypatch.context() as patch, pytest.raises(PastryError, match="the registry is there: start it"):
            patch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
            stage.insist(lambda run_id: run_id)
        starting = threading.Thread(target=server.start)
        starting.start()
        assert stage.insist(lambda run_id: tracker.client.get_run(run_id).info.run_name) == "register"
        starting.join()
        assert any("waiting for it, up to 5 minutes" in line for line in said)
