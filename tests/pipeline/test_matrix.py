"""Source choice: its place in the plan, what is refused, and one whole run from a base that knows nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.commands.rank import rank
from pastry.config import LabSettings, ModelShape, PastConfig, load_config
from pastry.domains import load_corpus
from pastry.errors import PastryError
from pastry.pipeline.plan import plan
from pastry.pipeline.runner import Run
from tests.conftest import ROOT, tiny_settings
from tests.pipeline.test_plan import digests


@pytest.fixture
def asked(tiny_config):
    """Two sources, of which one is a target as well; the run's own target and a third that only the matrix names."""
    return tiny_config | {"sources": ["planet", "ship"], "matrix": {"targets": ["company", "planet", "drug"]}}


def planned(config: dict) -> dict:
    return {stage.name: stage for stage in plan(PastConfig.model_validate(config), 1)}


def test_the_prediction_needs_no_rl(asked):
    stages, needed = planned(asked), {"signals"}
    for stage in reversed(stages.values()):
        if stage.name in needed:
            needed |= set(stage.inputs.values())
    assert {stages[name].kind for name in needed} == {"pretrain", "gate", "sft", "signals"}
    assert {stages[name].kind for name in stages["matrix"].inputs.values()} == {"sft", "extract", "signals"}


def test_what_has_read_already_is_not_trained_again(asked):
    stages = planned(asked)
    read = {name for name, stage in stages.items() if stage.kind == "sft"}
    assert read == {"sft/planet/1", "sft/ship/1", "sft/company", "sft/drug"}
    targets = {role: name for role, name in stages["matrix"].inputs.items() if role.startswith("target:")}
    assert targets == {"target:company": "sft/company", "target:planet": "sft/planet/1", "target:drug": "sft/drug"}
    assert set(stages) - set(planned(asked | {"matrix": None})) == {"sft/drug", "signals", "matrix"}


def test_a_prediction_outlives_a_change_of_rl_but_not_of_its_sampling(asked):
    before, longer, hotter = (
        digests(asked | {"rl": asked["rl"] | change}) for change in ({}, {"steps": 9}, {"temperature": 0.5})
    )
    assert before["signals"] == longer["signals"] != hotter["signals"] and before["matrix"] != longer["matrix"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("matrix.targets=[person]", "pretrain.gate.probe 'person' must be neither source nor target"),
        ("matrix.targets=[mars]", "the lab has no domain 'mars': choose one of planet, company"),
        ("matrix.targets=[]", "'matrix.targets': .*at least 1 item"),
        ("matrix.targets=[drug, drug]", "'matrix': targets repeat: drug, drug"),
        ("matrix.signals=[luck]", "matrix.signals: no signal 'luck'; there are: headroom, "),
        ("matrix.signals=[]", "'matrix.signals': .*at least 1 item"),
        ("matrix.k=17", "'matrix': k = 17 is larger than samples = 16"),
        ("matrix.k=1", "'matrix.k': .*greater than or equal to 2.*found 1"),
        ("matrix.lambda=0", "'matrix.lambda': λ must be a finite number other than 0"),
        ("matrix.lambda=.inf", "'matrix.lambda': λ must be a finite number"),
        ("matrix.lamda=1", "unknown key 'matrix.lamda'"),
    ],
)
def test_a_matrix_that_cannot_work_is_refused_in_one_message(asked, write_config, override, message):
    with pytest.raises(PastryError, match=message):
        Run(load_config(write_config(asked), [override]))


def test_a_target_without_test_questions_is_refused(tmp_path, asked, write_config):
    subjects = {}
    for name, documents in (("old", 3), ("new", 3), ("one", 1)):
        rows = {
            "documents": [{"id": f"d{i}", "text": f"document {i}"} for i in range(documents)],
            "questions": [{"document": f"d{i}", "question": f"which {i}?", "answer": str(i)} for i in range(documents)],
        }
        for key, content in rows.items():
            (tmp_path / f"{name}-{key}.jsonl").write_text("\n".join(map(json.dumps, content)))
        subjects[name] = {key: str(tmp_path / f"{name}-{key}.jsonl") for key in rows}
    files = {"pretrain": None, "base": "some/model", "domain": {"kind": "files", "subjects": subjects}, "sources": ["old"]}
    path = write_config(asked | files | {"target": "new", "matrix": {"targets": ["new", "one"]}})
    with pytest.raises(
        PastryError, match=r"^matrix.targets: domain 'one', part 1: no test questions: .*one-questions.jsonl asks about"
    ):
        Run(load_config(path))


def test_a_run_without_a_matrix_is_told_how_to_ask_for_one(tiny_config, write_config):
    with pytest.raises(PastryError, match=r"has no matrix group; for example matrix: \{ targets: \[company\] \}"):
        rank(write_config(tiny_config))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run from a random base: what is measured is nothing, and the numbers must say so."""
    directory = tmp_path_factory.mktemp("matrix")
    load_corpus(LabSettings(kind="lab", entities=6), 3).save_tokenizer(directory / "base")
    shape = ModelShape(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=2).model_dump()
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(directory / "base"))
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape, vocab_size=vocabulary)).save_pretrained(directory / "base")
    settings = tiny_settings(directory / "runs") | {"pretrain": None, "base": str(directory / "base")}
    settings["rl"] |= {"steps": 1}
    settings["sft"] |= {"steps": 2}
    settings["matrix"] = {"targets": ["company", "planet"], "samples": 2, "k": 2}
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def python(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_predicted_without_rl_then_measured(config):
    run = Run(load_config(config))
    shown = python("-m", "pastry.cli", "rank", config)
    assert "RL would cost: planet 1 steps" in shown and f"next:   pastry run {config} 'sources=[planet]'" in shown
    assert not [stage.name for stage in run.stages if stage.kind == "rl" and run.done(stage.name)]
    predicted = json.loads((run.path("signals") / "signals.json").read_text())
    values = {entry["name"]: entry["values"]["planet"] for entry in predicted["signals"]}
    assert values["headroom"] == {"company": 0.0} and values["trajectory_length"] == {"company": 4.0}
    assert -1 < values["sft_cosine"]["company"] < 1 and 0 < values["document_similarity"]["company"] < 1

    assert str(run.path("matrix")) in python("jobs/matrix.py", "--config", config)
    found = json.loads((run.path("matrix") / "matrix.json").read_text())
    assert found["gains"]["planet"]["company"] == {"n": 36, "before": 0, "after": 0, "mean": 0, "low": 0, "high": 0}
    assert set(found["gains"]["planet"]) == {"company", "planet"}  # the own domain is shown …
    assert all(entry["agreement"]["n"] == 1 for entry in found["signals"])  # … and not compared
    assert {entry["agreement"]["reason"] for entry in found["signals"]} == {"one source: there is nothing to rank"}
    assert found["ranking"] == [{"source": "planet", "predicted_rank": 1, "measured_rank": 1, "mean_gain": 0}]
    again = json.loads(python("-m", "pastry.cli", "rank", config, "--json"))
    assert again["measured"] == found and again["rl"]["planet"]["seconds"] > 0
