"""`pastry submit` without a cluster: what can be refused is refused at once, in one line."""

import sys

import pytest
import yaml

from pastry.cli import main
from tests.conftest import tiny_settings

NOWHERE = "http://127.0.0.1:9"  # the discard service's port: nothing listens there


@pytest.fixture
def submit(monkeypatch, capsys, tmp_path):
    """Run it in a directory that holds jobs/past.py and tiny.yaml; gives (exit code, the error)."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "past.py").touch()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(tmp_path / "runs")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # and so put back, whatever the command makes of it
        monkeypatch.delenv(name)

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pastry", "submit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["absent.yaml"], "error: absent.yaml: no such file"),
        (["tiny.yaml", "rl.stesp=3"], "error: tiny.yaml: unknown key 'rl.stesp'"),
        (
            ["tiny.yaml", "--stage", "rl"],
            "error: jobs/rl.py: no such file: submit from the directory that holds Pastry's jobs/",
        ),
        (["tiny.yaml", "--follow", "--stop"], "error: --follow and --stop: give one of them"),
        (
            ["tiny.yaml", "--token-file", "absent"],
            "error: --token-file absent: no such file; it should hold the cluster's token",
        ),
        (["tiny.yaml", "--runtime-env", "absent"], "error: --runtime-env absent: "),
        (["tiny.yaml", "--address", "localhost:8265"], "error: --address localhost:8265: expected the dashboard's, http://"),
        (["tiny.yaml", "--address", NOWHERE], f"error: {NOWHERE}: no Ray cluster answers there"),
    ],
)
def test_refused_in_one_line(submit, arguments, problem):
    code, error = submit(*arguments)
    assert code == 2 and error.startswith(problem) and error.count("\n") == 1


def test_a_config_that_would_not_travel_is_refused(submit, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "jobs").rename(tmp_path / "elsewhere" / "jobs")
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, error = submit("../tiny.yaml")
    assert code == 2 and "../tiny.yaml: the cluster gets a copy of" in error


def test_the_token_is_looked_for_where_ray_looks(submit, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "absent")
    code, error = submit("tiny.yaml", "--address", NOWHERE)
    assert code == 2 and error == "error: RAY_AUTH_TOKEN_PATH (absent): no such file; it should hold the cluster's token\n"
