"""What a run tells MLflow, in the SQLite file that is the default."""

import math

import pytest

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry import tracking
from pastry.registry.outbox import waiting
from pastry.registry.tracking import Tracker


def ignore(point):
    pass


def stages(tracker):
    """Name → MLflow's run of every stage."""
    found = tracker.client.search_runs([tracker.delivery.experiment_id], "tags.pastry.stage_run != ''")
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """One storage directory for the module: making MLflow's tables takes seconds."""
    return tmp_path_factory.mktemp("runs")


def test_names_and_values_that_mlflow_does_not_take_cost_no_others(storage, tmp_path):
    with Tracker(Tracking(), storage, "odd", {"pastry.seed": "0"}) as tracker:
        stage = tracker.stage("rl", "rl", {"learning:rate@": "x" * 7000}, ignore, tmp_path)
        stage.log({"step": 1, "steps": 2, "clip:high": 1.0, "/a//b@1": 2, "none": None, "nan": math.nan, "inf": -math.inf})
        stage.end({"seconds": 3.0}, {"pastry.path": "here"}, "FINISHED")
        tracker.finish({"seconds/rl": 3.0}, [])
    run = stages(tracker)["rl"]
    assert run.info.status == "FINISHED" and run.data.tags["pastry.path"] == "here"
    assert len(run.data.params["learning/rate_"]) == 6000
    assert math.isnan(run.data.metrics.pop("nan")) and run.data.metrics.pop("inf") < -1e308
    assert run.data.metrics == {"clip/high": 1.0, "a/b_1": 2.0, "seconds": 3.0}
    assert stage.curves == [{"step": 1, "steps": 2, "clip:high": 1.0, "/a//b@1": 2}], "JSON knows finite numbers only"
    whole = tracker.client.get_run(tracker.delivery.ids[tracker.run])
    assert whole.info.status == "FINISHED" and whole.data.tags["pastry.seed"] == "0"
    assert not waiting(storage / "odd")


def test_what_mlflow_refuses_is_set_aside_and_the_rest_arrives(storage, tmp_path):
    said = []
    with Tracker(Tracking(), storage, "refused", {}, said.append) as tracker:
        stage = tracker.stage("refusing", "sft", {"a": "1"}, ignore, tmp_path)
        for step in range(5):
            stage.log({"step": step, "steps": 5, "loss": step})
            tracker.put("params", stage.run, values={"a": str(step)})  # a parameter's value cannot be changed
        stage.end({}, {}, "FINISHED")
    run = stages(tracker)["refusing"]
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 4.0} and run.data.params == {"a": "1"}
    assert "refused 4 records" in said[0]
    assert len((storage / "refused/tracking/refused.jsonl").read_text().splitlines()) == 4


def test_a_stage_started_again_goes_on_with_its_run_and_its_curves(storage, tmp_path):
    with pytest.raises(KeyboardInterrupt), Tracker(Tracking(), storage, "again", {}) as tracker:
        stage = tracker.stage("resumed", "sft", {}, ignore, tmp_path)
        first = stage.run_id
        for step in range(1, 8):
            stage.log({"step": step, "steps": 10, "loss": 1 / step, "seconds": float(step)})
        raise KeyboardInterrupt
    assert stages(tracker)["resumed"].info.status == "RUNNING"
    (tmp_path / "curves.jsonl").open("a").write('{"time": 17, "poi')  # as a kill leaves it
    with Tracker(Tracking(), storage, "again", {}) as tracker:
        assert tracker.outbox.settle(180) and stages(tracker)["resumed"].info.status == "KILLED"
        stage = tracker.stage("resumed", "sft", {}, ignore, tmp_path)
        assert stage.run_id == first
        for step in (5, 6, 7, 8, 7, 8, 9, 10):  # from the checkpoint of step 4; then a worker died, and there was one of step 6
            stage.log({"step": step, "steps": 10, "loss": 1 / step, "seconds": step + 0.5})
        stage.end({}, {}, "FINISHED")
    assert [(point["step"], point["loss"]) for point in stage.curves] == [(step, 1 / step) for step in range(1, 11)]
    assert [point["seconds"] for point in stage.curves] == [1, 2, 3, 4, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5]
    logged = tracker.client.get_metric_history(first, "loss")
    assert [(point.step, point.value) for point in logged] == [(step, 1 / step) for step in range(1, 11)]
    assert stages(tracker)["resumed"].info.status == "FINISHED"


def test_a_first_start_without_the_server_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "START_SECONDS", 0.0)
    with pytest.raises(PastryError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer: start it"):
        Tracker(Tracking(uri="http://127.0.0.1:9"), tmp_path, "run", {})
    assert not (tmp_path / "run").exists()


def test_a_deleted_experiment_is_named(storage):
    with Tracker(Tracking(experiment="gone"), storage, "deleted", {}) as tracker:
        tracker.client.delete_experiment(tracker.delivery.experiment_id)
    with pytest.raises(PastryError, match="experiment 'gone' is deleted"):
        Tracker(Tracking(experiment="gone"), storage, "other", {})
