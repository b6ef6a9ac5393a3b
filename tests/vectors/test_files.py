import os
from pathlib import Path

import pytest

from pastry.errors import PastryError
from pastry.vectors.files import atomic_directory, read_json, resumable_directory, write_json


def test_output_is_absent_until_it_is_complete(tmp_path):
    out = tmp_path / "deep" / "out"
    with atomic_directory(out) as tmp:
        (tmp / "a.txt").write_text("a")
        assert not out.exists()
        assert tmp.parent == out.parent and tmp.name.startswith(".out.tmp-")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "a.txt").read_text() == "a"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), atomic_directory(tmp_path / "out") as tmp:
        (tmp / "a.txt").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_refused_and_empty_directory_is_not(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("full", "file", "link"):
        with (
            pytest.raises(PastryError, match="already exists; choose another --out or remove it"),
            atomic_directory(tmp_path / name),
        ):
            pytest.fail("entered")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as tmp:
        (tmp / "a").write_text("a")
    assert (tmp_path / "empty" / "a").exists()


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PastryError, match="already exists"), atomic_directory(out):
        out.mkdir()
        (out / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "theirs").exists()


def test_json_round_trip_and_errors(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"λ": 0.1})
    assert read_json(path) == {"λ": 0.1}
    with pytest.raises(ValueError):
        write_json(path, {"λ": float("nan")})
    assert read_json(path) == {"λ": 0.1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(PastryError, match=r"missing.json: no such file"):
        read_json(tmp_path / "missing.json")
    for content, message in [
        ("{", "not valid JSON"),
        ("[1]", "found a JSON list, wanted an object"),
        ("[" * 10**5, "not valid JSON"),
    ]:
        path.write_text(content)
        with pytest.raises(PastryError, match=f"a.json: {message}"):
            read_json(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(PastryError, match="not valid JSON"):
        read_json(path)


def test_notes_go_before_what_they_speak_of(tmp_path, monkeypatch):
    seen = []
    rename = os.rename

    def watched(source, target):
        seen.extend(sorted(path.name for path in Path(source).parent.iterdir()))
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    with resumable_directory(tmp_path / "out", {}) as (data, notes):
        (data / "a").write_text("a")
        (notes / "a.json").write_text("{}")
    assert seen == ["data", "identity.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
