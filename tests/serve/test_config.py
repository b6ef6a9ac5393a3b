"""The server's settings."""

import pytest

from pastry.errors import PastryError
from pastry_serve.config import load_serve_config


def test_a_missing_model_says_what_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PastryError, match=r"targets.target: runs/quickstart/target: no such directory.*make quickstart"):
        load_serve_config(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targets: {}", "targets"),
        ("targets: {a: .}\nport: 99999", "'port'"),
        ("targets: {a: .}\ntarget: b", "unknown key 'target'"),
        ("targets: [", "not valid YAML"),
        ("skills: {}", "'targets' is missing"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, message):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(PastryError, match=message) as refused:
        load_serve_config(path)
    assert str(path) in str(refused.value)
