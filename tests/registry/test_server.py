"""Tracking and registering through a real MLflow server, as teams have one."""

import pytest

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.register import register_directory
from pastry.registry.resolve import local_path
from pastry.registry.tracking import Tracker
from tests.registry.test_catalogue import vector

pytestmark = pytest.mark.slow


def test_a_skill_registers_through_the_server_and_is_found_again(server, tmp_path):
    skill, store = vector(tmp_path, "polite", 1), str(tmp_path / "store")
    with Tracker(Tracking(uri=server.url), tmp_path, "run", {}) as tracker:
        stage = tracker.stage("register", "register", {"a": "1"}, lambda point: None, tmp_path / "work")
        stage.log({"step": 1, "steps": 1, "loss": 0.5})
        client = tracker.client
        said = {"alias": "champion", "tags": {"team": "search"}}
        version = stage.insist(lambda run_id: register_directory(client, skill, store, run_id=run_id, **said))
        assert version.uri == "models:/polite/1" and version.tags == {"team": "search"}
        assert register_directory(client, skill, store, run_id=stage.run_id) == version, "the same vector is the same version"
        stage.end({"accuracy": 1.0}, {"pastry.digest": "x"}, "FINISHED")
        run_id = stage.run_id
    place = local_path(version.uri, server.url)
    assert place == local_path("models:/polite@champion", server.url) and place.parent == tmp_path / "store"
    assert [file.path for file in client.list_artifacts(run_id, "skill")] == ["skill/skill.json"], "no weights"
    assert client.get_metric_history(run_id, "loss")[0].value == 0.5
    by_hand = Catalogue(server.url, store).register(vector(tmp_path, "other", 2), parent_run=run_id)
    assert client.get_run(by_hand.run_id).data.tags["mlflow.parentRunId"] == run_id
    with pytest.raises(PastryError, match="say which version"):
        local_path("models:/polite", server.url)
