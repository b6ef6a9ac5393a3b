"""The whole search with Ray Tune: a grid, Optuna with early stopping and combinations, failures, a driver that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from pastry.config import PastConfig
from pastry.errors import PastryError
from pastry.pipeline.ablation import ablation
from pastry.pipeline.vectors import winner
from pastry.registry.tracking import Tracker
from pastry.vectors.algebra.combine import combine
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.skill import Skill
from pastry_tune.search import search
from tests.tune.conftest import make_config, stage_context

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here():
    from pastry.pipeline.workers import connect

    connect()
    yield
    ray.shutdown()


def run_search(config: PastConfig, place: Path, out: Path) -> dict:
    """The stage as the runner does it; gives search.json."""
    with Tracker(config.tracking, place / "runs", config.name, {}) as tracker:
        context = stage_context(config, place, "search", tracker, out)
        search(context)
        context.run.end({}, {}, "FINISHED")
    return json.loads((out / "search.json").read_text())


def child_runs(config: PastConfig, place: Path, out: Path) -> list:
    """MLflow's runs of the stage's trials."""
    with Tracker(config.tracking, place / "runs", config.name, {}) as tracker:
        tag = json.loads((out.with_name(f"{out.name}-work") / "stage_run.json").read_text())["id"]
        experiment = [tracker.delivery.experiment_id]
        stage = tracker.client.search_runs(experiment, f"tags.`pastry.stage_run` = '{tag}'")[0].info.run_id
        return tracker.client.search_runs(experiment, f"tags.mlflow.parentRunId = '{stage}'")


@pytest.fixture(scope="module")
def grid(ray_here, place, tmp_path_factory):
    """Two sources and their consensus at three λ and one that is too large: (config, directory, search.json)."""
    out = tmp_path_factory.mktemp("grid") / "search"
    config = make_config(place, lambdas=[0.5, 1.0, 1.5, 1e39])
    return config, out, run_search(config, place, out)


def test_a_grid_finds_the_vector_and_the_lambda_that_answer(grid, place):
    _, out, found = grid
    assert found["method"] == "grid" and len(found["trials"]) == 3 * 3
    best = found["best"]
    assert (best["source"], best["lambda"], best["accuracy"], best["n"]) == ("ship", 1.0, 1.0, found["reference"]["n"])
    assert (out / "winner").resolve() == (place / "ship" / "skill").resolve()
    assert best["fingerprint"] == Skill(out / "winner").manifest.fingerprint
    assert winner(out) == (out / "winner", 1.0)
    assert {each["source"] for each in found["trials"]} == {"ship", "moon", "consensus(ship,moon)"}
    assert next(each for each in found["trials"] if each["id"] == best["id"])["pareto"]


def test_a_failing_trial_is_counted_and_does_not_end_the_sweep(grid):
    failed = grid[2]["failed"]
    assert [(each["lambda"], each["source"]) for each in failed] == [
        (1e39, name) for name in ("ship", "moon", "consensus(ship,moon)")
    ]
    assert "wanted a finite number" in failed[0]["error"] and "\n" not in failed[0]["error"]


def test_the_curves_begin_with_the_target_itself(grid):
    found = grid[2]
    curve = [point for point in found["points"] if point["source"] == "moon"]
    assert [point["lambda"] for point in curve] == [0.0, 0.5, 1.0, 1.5]
    assert curve[0]["accuracy"] == found["reference"]["accuracy"] and found["reference"]["retention"]["n"] == 8


def test_the_winner_is_confirmed_on_questions_it_never_saw(grid):
    said = grid[2]["confirmation"]
    assert said["fresh"]["accuracy"] == said["validation"]["accuracy"] == 1.0 and not said["overfit"]
    assert said["fresh"]["n"] > said["validation"]["n"]  # a third of the documents is for validation
    assert said["difference"]["low"] < 0 < said["difference"]["high"]


def test_every_trial_is_a_run_inside_the_stages_run(grid, place):
    config, out, found = grid
    runs = child_runs(config, place, out)
    status = {run.data.tags["pastry.trial"]: run.info.status for run in runs}
    assert len(runs) == len(status) == 12
    assert status == {each["id"]: "FINISHED" for each in found["trials"]} | {each["id"]: "FAILED" for each in found["failed"]}
    best = next(run for run in runs if run.data.tags["pastry.trial"] == found["best"]["id"])
    assert best.data.metrics["accuracy"] == 1.0 and best.data.params == {"source": "ship", "method": "single", "lambda": "1.0"}


def test_ablation_is_of_the_winner_and_paired(grid, place, tmp_path):
    config, out, _ = grid
    with Tracker(config.tracking, place / "runs", config.name, {}) as tracker:
        context = stage_context(config, place, "ablation", tracker, tmp_path / "ablation", search=out)
        ablation(context)
    found = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
    assert found["source"] == "ship" and found["full"]["accuracy"] == 1.0 and found["full"]["gain"]["mean"] == 1.0
    groups = {row["group"]: row for row in found["groups"]}
    assert set(groups) == {"attention", "mlp", "embeddings", "norms", "early", "late"}
    kinds = ("attention", "mlp", "embeddings", "norms")
    assert sum(groups[kind]["norm_share"] for kind in kinds) == pytest.approx(1)
    assert sum(groups[kind]["tensors"] for kind in kinds) == len(Skill(out / "winner").tensors)
    for row in found["groups"]:
        assert row["only"]["gain"]["mean"] <= 1.0 and row["without"]["gain"]["low"] <= row["without"]["gain"]["mean"]


@pytest.fixture(scope="module")
def odd(place, tmp_path_factory) -> Path:
    """Sources that are of no use alone: their mean is the vector that answers."""
    other = tmp_path_factory.mktemp("odd") / "place"
    shutil.copytree(place, other, ignore=shutil.ignore_patterns("runs", "skill"))
    skills = [(place / "ship" / "skill", 2.0), (place / "moon" / "skill", -1.0)]
    combine(skills, other / "ship" / "skill", name="odd", method="sum")
    shutil.copytree(place / "moon" / "skill", other / "moon" / "skill")
    return other


def test_optuna_stops_early_and_finds_a_combination(ray_here, odd, tmp_path):
    config = make_config(
        odd,
        lambdas={"low": 0.0, "high": 2.0},
        groups=["mlp"],
        combinations=["mean", "linear"],
        trials=10,
        early_stopping={"smallest": 5},
        penalties={"retention": 0.5},
        seed=1,
    )
    found = run_search(config, odd, tmp_path / "search")
    n = found["reference"]["n"]
    assert found["method"] == "optuna" and found["subsets"] == [n // 9, n // 3, n] and len(found["trials"]) == 10
    first, mixed = found["trials"][:5], ["consensus(ship,moon)", "mean(ship,moon)", "linear(0.50·ship,0.50·moon)"]
    assert [each["source"] for each in first] == ["ship", "moon", *mixed]
    assert all(each["lambda"] == {"mlp": 1.0, "all": 1.0} for each in first)
    stopped = [each for each in found["trials"] if not each["complete"]]
    assert stopped and {each["n"] for each in stopped} <= {n // 9, n // 3} and not any(each["pareto"] for each in stopped)
    assert found["points"] and {point["lambda"] for point in found["points"]} == {0.0}  # no curve over two λ
    best = found["best"]
    assert (best["source"], best["lambda"], best["accuracy"]) == ("mean(ship,moon)", {"mlp": 1.0, "all": 1.0}, 1.0)
    vector, lam = winner(tmp_path / "search")
    manifest = open_skill(vector).manifest
    assert not vector.is_symlink() and manifest.method == "mean" and manifest.fingerprint == best["fingerprint"]
    assert lam.text == "mlp=1.0,all=1.0"


def test_when_every_trial_fails_one_message_says_why_and_what_was_measured_is_kept(ray_here, place, tmp_path):
    out = tmp_path / "search"
    with pytest.raises(PastryError, match=r"every trial failed \(3\); first: ship at λ = 1e\+39: .*finite number") as refused:
        run_search(make_config(place, lambdas=[1e39]), place, out)
    assert "\n" not in str(refused.value) and not (out / "search.json").exists()
    assert (tmp_path / "search-work" / "known" / "reference.json").exists()


DRIVER = """
import sys
from pathlib import Path
from tests.tune.conftest import make_config
from tests.tune.test_search import run_search
from pastry.pipeline.workers import connect
connect()
place, out = map(Path, sys.argv[1:])
config = make_config(place, method="optuna", lambdas={"low": 0.0, "high": 2.0}, trials=40, concurrency=1, early_stopping=None)
run_search(config, place, out)
"""


def test_a_killed_search_goes_on_and_repeats_no_trial(place, tmp_path):
    mine = tmp_path / "place"
    shutil.copytree(place, mine, ignore=shutil.ignore_patterns("runs"))
    out, known = tmp_path / "search", tmp_path / "search-work" / "known"
    command = [sys.executable, "-c", DRIVER, str(mine), str(out)]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(known.glob("*.json"))) < 8:  # the reference and seven trials
        assert process.poll() is None and time.monotonic() < deadline, "it ended, or never began"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {file.name: file.stat().st_mtime_ns for file in known.glob("*.json")}
    assert 8 <= len(before) < 41, "killed too late"
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = {file.name: file.stat().st_mtime_ns for file in known.glob("*.json")}
    assert {name: after[name] for name in before} == before
    found = json.loads((out / "search.json").read_text())
    assert len(found["trials"]) == 40 == len(after) - 1 and not found["failed"]
    config = make_config(mine)
    runs = child_runs(config, mine, out)
    assert sorted(run.data.tags["pastry.trial"] for run in runs) == sorted(each["id"] for each in found["trials"])
