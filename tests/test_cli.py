"""The command line: a user's mistake is one clear message, exit code 2, and nothing left behind."""

import json
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.cli import main
from pastry.config import LabSettings, ModelShape
from pastry.domains import load_corpus

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}


@pytest.fixture
def pastry(monkeypatch, capsys):
    """Run the command; gives (exit code, stdout, stderr)."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pastry", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def checkpoint(tmp_path):
    """Make a checkpoint with the lab's tokenizer."""

    def make(name, seed=0, world=0, **shape):
        directory = tmp_path / name
        load_corpus(LabSettings(kind="lab", entities=6), world).save_tokenizer(directory)
        torch.manual_seed(seed)
        model = ModelShape(**SHAPE | shape).model_dump()
        config = AutoConfig.for_model(**model, vocab_size=len(AutoTokenizer.from_pretrained(directory)))
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        return directory

    return make


def everything_under(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_extract_then_inject_gives_the_end_back(pastry, checkpoint, tmp_path):
    start, end = checkpoint("start", 0), checkpoint("end", 1)
    code, out, _ = pastry("vector", "extract", "--end", end, "--start", start, "--base", start, "--out", tmp_path / "v")
    assert code == 0 and "skill vector 'skill'" in out and "next: pastry vector inject" in out
    arguments = ["vector", "inject", "--target", start, "--skill", f"{tmp_path / 'v'}:1.0", "--out", tmp_path / "made"]
    code, out, _ = pastry(*arguments)
    assert code == 0 and "realised ratio 1.0000" in out
    made, wanted = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "made", end))
    for name, tensor in wanted.items():
        torch.testing.assert_close(made[name], tensor, rtol=0, atol=1e-7)
    code, out, _ = pastry("vector", "verify", tmp_path / "v")
    assert code == 0 and "as recorded" in out
    code, out, _ = pastry("vector", "inspect", tmp_path / "v", "--json")
    assert code == 0 and json.loads(out)["name"] == "skill"


def test_json_output_of_inject_is_its_report(pastry, checkpoint, tmp_path):
    start, end = checkpoint("start", 0), checkpoint("end", 1)
    pastry("vector", "extract", "--end", end, "--start", start, "--out", tmp_path / "v")
    skill = f"{tmp_path / 'v'}:0.5"
    code, out, _ = pastry("vector", "inject", "--target", start, "--skill", skill, "--out", tmp_path / "m", "--json")
    report = json.loads(out)
    assert code == 0 and report["skills"][0]["lam"] == 0.5 and report["realised_ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("lam", "message"), [("high", "λ is 'high', wanted a finite number"), ("nan", "finite"), ("inf", "finite"), ("", "λ is ''")]
)
def test_a_lambda_that_is_no_number(pastry, checkpoint, tmp_path, lam, message):
    target = checkpoint("target")
    before = everything_under(tmp_path)
    code, _, err = pastry("vector", "inject", "--target", target, "--skill", f"{target}:{lam}", "--out", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize(
    ("shape", "world", "message"),
    [({"hidden_size": 32}, 0, "[704, 16]"), ({"num_hidden_layers": 1}, 0, "layers.1"), ({}, 1, "vocabulary")],
)
def test_a_vector_of_another_architecture_or_vocabulary(pastry, checkpoint, tmp_path, shape, world, message):
    start, end = checkpoint("start", 0), checkpoint("end", 1)
    pastry("vector", "extract", "--end", end, "--start", start, "--out", tmp_path / "v")
    target = checkpoint("target", world=world, **shape)
    before = everything_under(tmp_path)
    code, _, err = pastry("vector", "inject", "--target", target, "--skill", tmp_path / "v", "--out", tmp_path / "out")
    assert code == 2 and message in err and "Traceback" not in err
    assert everything_under(tmp_path) == before


def test_a_path_that_is_no_checkpoint(pastry, checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    good = checkpoint("good")
    before = everything_under(tmp_path)
    for path, message in [(tmp_path / "absent", "no such directory"), (tmp_path / "empty", "safetensors")]:
        code, _, err = pastry("vector", "extract", "--end", good, "--start", path, "--out", tmp_path / "v")
        assert code == 2 and str(path) in err and message in err
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["moon"]}, "no domain 'moon'"),
        ({"rl": {"stepps": 1}}, "unknown key 'rl.stepps'"),
        ({"pretrain": None, "base": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_is_written(
    pastry, tiny_config, write_config, tmp_path, change, message
):
    path = write_config(tiny_config | change)
    before = everything_under(tmp_path)
    for arguments in (["run", path], ["run", path, "--dry-run"], ["search", path]):
        code, _, err = pastry(*arguments)
        assert code == 2 and message in err and "Traceback" not in err
    assert everything_under(tmp_path) == before


def test_a_dry_run_shows_every_stage_and_writes_nothing(pastry, tiny_config, write_config, tmp_path):
    path = write_config(tiny_config | {"name": "dry"})
    before = everything_under(tmp_path)
    code, out, _ = pastry("run", path, "--dry-run", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["workers"] == 1
    assert [stage["stage"] for stage in planned["stages"]][:3] == ["pretrain", "gate", "sft/planet/1"]
    assert not any(stage["done"] for stage in planned["stages"])
    code, out, _ = pastry("search", path, "--dry-run")
    assert code == 0 and "extract/planet/1" in out and "evaluate" not in out and "nothing" in out
    assert everything_under(tmp_path) == before


def test_a_report_of_an_unfinished_run(pastry, tmp_path):
    code, _, err = pastry("report", tmp_path)
    assert code == 2 and "no result.json" in err


def test_a_misspelt_option_gets_usage_and_not_a_traceback(pastry):
    code, _, err = pastry("run", "--conffig", "x")
    assert code == 2 and "--conffig" in err and "Traceback" not in err


def test_help_names_every_command(pastry):
    code, out, _ = pastry("--help")
    assert code == 0
    for command in ("run", "search", "evaluate", "report", "serve", "vector"):
        assert command in out


def test_a_batch_that_the_workers_cannot_share(pastry, tiny_config, write_config):
    path = write_config(tiny_config)
    code, _, err = pastry("run", path, "resources.workers=3", "--dry-run")
    assert code == 2 and "sft.batch_rows = 4 cannot be shared by 3 workers" in err
