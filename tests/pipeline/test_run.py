"""A whole run of the smallest kind, with Ray, TRL, Tune and MLflow: what it leaves, and what a kill does to it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from pastry.config import PastConfig, load_config
from pastry.engine.transformers_engine import TransformersEngine
from pastry.errors import PastryError
from pastry.pipeline.runner import Run
from pastry.pipeline.storage import storage
from pastry.registry.catalogue import Catalogue
from pastry.registry.lineage import Lineage
from pastry.registry.resolve import local_path
from pastry.vectors.checkpoint import checkpoint_fingerprint
from pastry.vectors.skill import Skill
from tests.conftest import tiny_settings

ROOT = Path(__file__).resolve().parents[2]
QUICK = 30
"""Seconds in which a finished run must say so: it starts neither Ray nor MLflow."""


def pastry(*arguments, **options):
    command = [sys.executable, "-m", "pastry.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def markers(run: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in run.glob("stages/*/stage.json")}


def numbers(run: Path) -> dict:
    result = json.loads((run / "result.json").read_text())
    return {key: result[key] for key in ("rows", "lambda_best", "cosines", "search", "perplexity")}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two rounds, two workers, a gate that cannot be passed."""
    settings = tiny_settings(tmp_path_factory.mktemp("storage"))
    settings |= {"rounds": 2, "compare": ["past_1_round", "prompted", "control_random"], "resources": {"workers": 2}}
    settings["pretrain"]["steps"] = 40
    settings["pretrain"]["gate"] |= {"prompted_accuracy": 1.0, "extra_steps": 4, "extensions": 1}
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def finished(config):
    """The run's directory, and what its command printed."""
    done = pastry("run", config)
    assert done.returncode == 0, done.stderr
    return storage(load_config(config)) / "tiny", done


pytestmark = pytest.mark.slow


def test_the_terminal_shows_stages_results_and_no_chatter(finished):
    _, done = finished
    for text in ("[ 1/", "pretrain", "GATE MISSED", "realised ratio 1.0000", "past@best", "report.html"):
        assert text in done.stdout
    for noise in ("Traceback", "WARNING", "Warning", "INFO", "Loading weights"):
        assert noise not in done.stdout + done.stderr, noise


def test_result_json_holds_what_design_says(finished):
    result = json.loads((finished[0] / "result.json").read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == ["base", "target_sft", "past@1", "past@best", "past_1_round", "prompted", "control_random"]
    for row in result["rows"]:
        assert row["n"] == 36 and 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
    assert set(result["cosines"]) == {"sft_source_rl", "sft_target_rl", "sft_sft"}
    assert result["lambda_best"] in (0.5, 1.0) and result["seed"] == 3
    assert {"pretrain", "rl/planet/2", "search"} <= set(result["seconds"]) and "ray" in result["versions"]
    assert result["gate"]["gate_passed"] is False and len(result["gate"]["gate_tries"]) == 2


def test_again_does_nothing_and_says_so(config, finished):
    directory, _ = finished
    before = markers(directory)
    again = pastry("run", config, timeout=QUICK)
    assert again.returncode == 0 and "everything is done already" in again.stdout and "past@best" in again.stdout
    assert markers(directory) == before


def test_rl_keeps_the_weights_it_started_from(config, finished):
    run = Run(load_config(config))
    started = checkpoint_fingerprint(run.path("rl/planet/2") / "start")
    assert started == checkpoint_fingerprint(run.path("inject/planet/2") / "model")
    assert started != checkpoint_fingerprint(run.path("rl/planet/2") / "model")


def test_the_second_vector_is_the_end_minus_its_own_sft(config, finished):
    run = Run(load_config(config))
    manifest = Skill(run.path("extract/planet/2") / "skill").manifest
    assert manifest.end == checkpoint_fingerprint(run.path("rl/planet/2") / "model")
    assert manifest.start == checkpoint_fingerprint(run.path("sft/planet/2") / "model")
    assert manifest.training_run == run.marker("rl/planet/2")["run_id"]


def test_the_injected_checkpoint_loads_and_is_the_engine_at_that_lambda(config, finished):
    run = Run(load_config(config))
    lam = run.marker("search")["metrics"]["lambda_best"]
    engine = TransformersEngine(run.path("sft/company") / "model", {"skill": run.path("extract/planet/2") / "skill"})
    engine.attach({"skill": lam})
    written = AutoModelForCausalLM.from_pretrained(run.path("inject") / "model").state_dict()
    for name, tensor in engine.model.state_dict().items():
        assert (written[name] == tensor).all(), name


def test_mlflow_has_runs_metrics_plots_and_the_registered_skill(finished):
    directory, _ = finished
    client = MlflowClient(f"sqlite:///{directory.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("pastry")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"tiny", "pretrain", "rl/planet/1", "search", "report"} <= set(runs)
    assert all(run.info.status == "FINISHED" for run in runs.values())
    rewards = client.get_metric_history(runs["rl/planet/1"].info.run_id, "reward")
    assert [point.step for point in rewards] == [1, 2]
    parent = runs["tiny"].info.run_id
    assert {file.path for file in client.list_artifacts(parent)} >= {"report.html", "result.json"}
    assert any(file.path.endswith(".png") for file in client.list_artifacts(runs["report"].info.run_id, "plots"))
    version = client.get_model_version_by_alias("lab-planet", "champion")
    manifest = Skill(directory / "skill").manifest
    assert version.tags["pastry.fingerprint"] == manifest.fingerprint
    assert json.loads(version.tags["pastry.facts"])["inputs"]["base"] == manifest.base
    assert Skill(local_path("models:/lab-planet@champion", client.tracking_uri)).manifest == manifest
    with pytest.raises(PastryError, match="not in the registry"):
        local_path("models:/lab-planet@nobody", client.tracking_uri)


def test_lineage_leads_from_the_base_to_the_recipe_without_the_stages_directories(finished):
    directory, _ = finished
    graph = Lineage(Catalogue(f"sqlite:///{directory.parent}/mlflow.db"))
    base = graph.find(Skill(directory / "skill").manifest.base)
    stages, node = [base.label], base
    for role, name in [("base", "rl/planet/2"), ("end", "models:/lab-planet/1 @champion"), ("skill lab-planet", "")]:
        node = next(n for r, n in graph.made_of(node) if r == role and n.label.startswith(name))
        stages.append(node.label)
    assert base.label in ("pretrain", "gate") and node.label.startswith(("models:/lab-company-with-planet/1", "inject"))
    data = next(made for role, made in graph.find(stages[2].split()[0]).inputs.items() if role == "data")
    assert any(other.label.startswith("models:/lab-planet/1") for _, other in graph.made_of(graph.find(data)))


def test_the_recipe_answers_from_plain_mlflow(finished):
    directory, _ = finished
    mlflow.set_tracking_uri(f"sqlite:///{directory.parent}/mlflow.db")
    recipe = mlflow.pyfunc.load_model("models:/lab-company-with-planet@champion")
    engine = TransformersEngine(directory / "target", {"skill": directory / "skill"})
    engine.attach({"skill": json.loads((directory / "result.json").read_text())["lambda_best"]})
    prompts = ["<bos> <q> what is the city", "<bos> the"]
    expected = [completion.text for completion in engine.generate(prompts, max_new_tokens=5)]
    assert recipe.predict(prompts, params={"max_new_tokens": 5}) == expected


def test_killed_at_any_moment_it_finishes_with_the_same_numbers(config, finished):
    # The same settings under another name are the same stages: the numbers must come out equal.
    directory = finished[0].parent / "killed"
    command = [sys.executable, "-m", "pastry.cli", "run", str(config), "name=killed"]
    kept: dict[str, int] = {}
    for stage, wait in [("pretrain", 4), ("rl.planet.1", 3), ("search", 2)]:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while not list(directory.glob(f"stages/.{stage}-*.tmp-*")):
            assert process.poll() is None and time.monotonic() < deadline, f"{stage} never began"
            time.sleep(0.1)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert all(markers(directory).get(name) == when for name, when in kept.items()), "a finished stage was redone"
        kept = markers(directory)
    last = pastry("run", config, "name=killed")
    assert last.returncode == 0, last.stderr
    assert {name: when for name, when in markers(directory).items() if name in kept} == kept and kept
    assert numbers(directory) == numbers(finished[0])
    assert not list(directory.glob("stages/.*.tmp-*"))


def test_a_second_process_on_the_same_run_is_refused(finished, config, monkeypatch):
    run = Run(load_config(config))
    with run._alone(), pytest.raises(PastryError, match="another process is at work"), run._alone():
        pass


def test_a_job_never_stores_in_its_throw_away_directory(tiny_config, monkeypatch):
    config = PastConfig.model_validate(tiny_config | {"storage": "runs"})
    assert storage(config) == Path.cwd() / "runs"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert storage(config) == Path.home() / "pastry" / "runs"
