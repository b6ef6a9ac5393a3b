"""Tracking and registering through a real MLflow server, as teams have one."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry.register import register_skill
from pastry.registry.resolve import local_path
from pastry.registry.tracking import Tracker
from pastry.vectors.extract import extract
from pastry.vectors.files import write_json

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=2)
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the MLflow server did not start"
            time.sleep(0.5)
    yield url
    process.terminate()
    process.wait()


@pytest.fixture
def skill(tmp_path):
    for name, seed in (("start", 0), ("end", 1)):
        (tmp_path / name).mkdir()
        torch.manual_seed(seed)
        save_file({"model.norm.weight": torch.randn(64)}, tmp_path / name / "model.safetensors")
        write_json(tmp_path / name / "config.json", {"model_type": "llama", "vocab_size": 8, "hidden_size": 64})
    extract(tmp_path / "end", tmp_path / "start", tmp_path / "skill", name="polite")
    return tmp_path / "skill"


def test_a_skill_registers_through_the_server_and_is_found_again(server, skill, tmp_path):
    tracker = Tracker(Tracking(uri=server), tmp_path, "run", {})
    stage = tracker.stage("register", "register", {"a": "1"}, lambda point: None)
    stage.log({"step": 1, "steps": 1, "loss": 0.5})
    uri = register_skill(tracker.client, skill, stage.run_id, {"pastry.lambda": "1"}, "champion", "a description")
    assert uri == "models:/polite/1"
    assert local_path(uri, server) == local_path("models:/polite@champion", server) == skill
    again = register_skill(tracker.client, skill, stage.run_id, {}, "champion", "")
    assert again == uri, "the same vector is the same version"
    stage.end({"accuracy": 1.0}, {"pastry.digest": "x"}, "FINISHED")
    assert [file.path for file in tracker.client.list_artifacts(stage.run_id, "skill")] == ["skill/skill.json"]
    assert tracker.client.get_metric_history(stage.run_id, "loss")[0].value == 0.5
    with pytest.raises(PastryError, match="say which one"):
        local_path("models:/polite", server)
    skill.rename(tmp_path / "elsewhere")
    with pytest.raises(PastryError, match="where no directory is any more"):
        local_path(uri, server)


def test_a_killed_stage_does_not_stay_running(server, tmp_path):
    killed = Tracker(Tracking(uri=server), tmp_path, "run", {}).stage("rl", "rl", {}, lambda point: None)
    tracker = Tracker(Tracking(uri=server), tmp_path, "run", {})
    assert tracker.client.get_run(killed.run_id).info.status == "KILLED"
