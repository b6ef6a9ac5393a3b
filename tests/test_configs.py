"""Every configuration in the repository parses and passes its dry run, on a machine without GPUs and network."""

import json

import pytest

from pastry.commands.plan import show_plan
from pastry.config import load_config
from pastry.pipeline.runner import Run
from tests.conftest import ROOT

CONFIGS = [path for path in sorted((ROOT / "jobs").rglob("*.yaml")) if "domain:" in path.read_text()]
SEVEN = 7_615_616_512


@pytest.fixture
def dry_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(path, *overrides):
        show_plan(Run(load_config(path, [f"storage={tmp_path}", *overrides])), None, True)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_passes_its_dry_run(dry_run, path):
    found = dry_run(path)
    assert found["model"]["parameters"] > 0
    for stage in found["stages"]:
        trained = stage["kind"] in ("pretrain", "midtrain", "sft", "rl")
        assert (stage["memory"] is not None) == (trained or stage["kind"] == "gate")
        assert (stage["tokens"] is not None) == trained


@pytest.mark.parametrize("kind", ["sft", "rl", "past"])
@pytest.mark.parametrize(("place", "workers"), [("1x8", 8), ("4x8", 32)])
def test_the_large_ones_are_made_for_their_gpus(dry_run, kind, place, workers):
    found = dry_run(ROOT / f"jobs/configs/qwen2.5-7b-{kind}-{place}.yaml")
    assert found["workers"] == workers and found["model"]["parameters"] == SEVEN
    # 80 GB, less what CUDA, NCCL and fragmentation take
    assert all(stage["memory"]["total"] < 68e9 for stage in found["stages"] if stage["memory"])
    assert found["not_checked"]


def test_a_plan_is_readable(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "jobs/configs/qwen2.5-7b-past-4x8.yaml", [f"storage={tmp_path}"])
    show_plan(Run(config), "rl", False)
    shown = capsys.readouterr().out
    assert "7.62 G parameters" in shown and "32 worker(s) with a GPU each" in shown and "not checked: GPUs" in shown
    assert "rl/source/2" in shown and "evaluate" not in shown
    table = shown[: shown.index("32 worker(s)")]
    assert max(map(len, table.splitlines())) <= 120
