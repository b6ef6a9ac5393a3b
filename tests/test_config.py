"""Settings: what is refused, and how."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pastry.config import load_config
from pastry.errors import PastryError

ROOT = Path(__file__).resolve().parent.parent
JOBS = [script for script in sorted((ROOT / "jobs").glob("*.py")) if "import job" in script.read_text()]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.stepps=3", "unknown key 'rl.stepps'"),
        ("rl.steps=many", "'rl.steps': .*integer.*found 'many'"),
        ("rl.steps=0", "'rl.steps': .*greater than 0.*found 0"),
        ("search.lambdas=[1, .nan]", "λ must be a finite number"),
        ("search.lambdas=[one]", "'search.lambdas.0': .*number.*found 'one'"),
        ("search.lambdas=[]", "'search.lambdas'"),
        ("target=planet", "target 'planet' is also a source"),
        ("rounds=2", "rounds = 2 but the domain has parts"),
        ("sft.epochs=3", "give either steps or epochs"),
        ("sft.overlap_tokens=64", "overlap_tokens = 64 must be below row_tokens = 64"),
        ("sft.second={steps: 1, second: {steps: 1}}", "unknown key 'sft.second.second'"),
        ("midtrain={steps: 1}", "'midtrain.mixture' is missing"),
        ("midtrain={steps: 1, mixture: {}}", "'midtrain.mixture': .*at least 1 item"),
        ("midtrain={steps: 1, mixture: {documents: 0}}", "'midtrain': mixture.documents: a share must be above 0, found 0"),
        ("midtrain={steps: 1, mixture: {documents: .inf}}", "mixture.documents: a share must be above 0, found inf"),
        ("base=somewhere", "give either base .* or pretrain"),
        ("pretrain.gate.probe=planet", "neither source nor target"),
        ("compare=[past_1_round]", "past_1_round needs rounds"),
        ("compare=[pass@k]", "'compare.0'"),
        ("name=a/b", "'name'"),
        ("domain.kind=moon", "'domain': .*'moon'"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_found(tiny_config, write_config, override, message):
    tiny_config["domain"]["parts"] = 1
    path = write_config(tiny_config)
    with pytest.raises(PastryError, match=message) as refused:
        load_config(path, [override])
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [("rl.steps", "write key=value"), ("name.first=x", "'name' holds a value"), ("rl.steps=[", "not valid YAML")],
)
def test_a_bad_override_is_refused(tiny_config, write_config, override, message):
    with pytest.raises(PastryError, match=message):
        load_config(write_config(tiny_config), [override])


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- a", "expected settings"), ("", "expected settings")]
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(PastryError, match=message):
        load_config(path)


def test_a_missing_file_points_to_an_example(tmp_path):
    with pytest.raises(PastryError, match=r"no such file; jobs/quickstart.yaml is an example"):
        load_config(tmp_path / "absent.yaml")


def test_an_override_reaches_its_key(tiny_config, write_config):
    config = load_config(write_config(tiny_config), ["rl.steps=9", "search.lambdas=[2, 1, 2]", "sources=[planet, ship]"])
    assert (config.rl.steps, config.search.lambdas, config.sources) == (9, [1.0, 2.0], ["planet", "ship"])


@pytest.mark.slow
@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_every_job_shows_its_plan(script, tiny_config, write_config):
    path = write_config(tiny_config)
    changes = ["rl.steps=7", "midtrain={steps: 3, row_tokens: 64, mixture: {documents: 1}}", "matrix={targets: [company]}"]
    command = [sys.executable, str(script), "--config", str(path), *changes, "--dry-run", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kinds = [stage["kind"] for stage in json.loads(done.stdout)["stages"]]
    assert kinds[0] == "pretrain"
    assert kinds[-1] == ("report" if script.stem == "past" else script.stem)
