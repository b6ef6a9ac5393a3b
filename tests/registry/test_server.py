"""Tracking and registering through a real MLflow server, as teams have one."""

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
def skill(tmp_path):
    for name, seed in (("start", 0), ("end", 1)):
        (tmp_path / name).mkdir()
        torch.manual_seed(seed)
        save_file({"model.norm.weight": torch.randn(64)}, tmp_path / name / "model.safetensors")
        write_json(tmp_path / name / "config.json", {"model_type": "llama", "vocab_size": 8, "hidden_size": 64})
    extract(tmp_path / "end", tmp_path / "start", tmp_path / "skill", name="polite")
    return tmp_path / "skill"


def test_a_skill_registers_through_the_server_and_is_found_again(server, skill, tmp_path):
    with Tracker(Tracking(uri=server.url), tmp_path, "run", {}) as tracker:
        stage = tracker.stage("register", "register", {"a": "1"}, lambda point: None, tmp_path / "work")
        stage.log({"step": 1, "steps": 1, "loss": 0.5})
        client = tracker.client
        uri = stage.insist(lambda run_id: register_skill(client, skill, run_id, {"pastry.lambda": "1"}, "champion", "text"))
        assert uri == "models:/polite/1"
        assert local_path(uri, server.url) == local_path("models:/polite@champion", server.url) == skill
        again = register_skill(client, skill, stage.run_id, {}, "champion", "")
        assert again == uri, "the same vector is the same version"
        stage.end({"accuracy": 1.0}, {"pastry.digest": "x"}, "FINISHED")
        run_id = stage.run_id
    assert [file.path for file in client.list_artifacts(run_id, "skill")] == ["skill/skill.json"]
    assert client.get_metric_history(run_id, "loss")[0].value == 0.5
    with pytest.raises(PastryError, match="say which one"):
        local_path("models:/polite", server.url)
    skill.rename(tmp_path / "elsewhere")
    with pytest.raises(PastryError, match="where no directory is any more"):
        local_path(uri, server.url)
