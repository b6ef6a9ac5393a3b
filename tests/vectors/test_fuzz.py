"""The first inputs of benchmarks/fuzz_inputs.py, and the ones that were findings once."""

import json
import os

import pytest

from benchmarks.fuzz_files import checkpoint
from benchmarks.fuzz_inputs import fuzz
from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint, TensorDirectory
from pastry.vectors.extract import extract
from pastry.vectors.files import parse_json, read_json, read_text
from pastry.vectors.modules import layer_and_module, parse_lambda
from pastry.vectors.recipe import parse_recipe
from pastry.vectors.safetensors_format import read_header


def test_damaged_inputs_are_read_or_refused_with_one_error():
    outcomes, findings = fuzz(2500, seed=7)
    assert [(finding.target, finding.index, finding.what) for finding in findings] == []
    targets = {target for target, _ in outcomes}
    assert all(outcomes[target, "accepted"] and outcomes[target, "refused"] for target in targets) and len(targets) == 9


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype": "F32", "shape": [2], "data_offsets": [-0, 8]}',
        '{"dtype": "F32", "shape": [1099511627776, 1099511627776, 0], "data_offsets": [0, 0]}',
        f'{{"dtype": "F32", "shape": [2], "data_offsets": [0, 1{"0" * 5000}]}}',
    ],
)
def test_headers_that_the_library_refuses(tmp_path, entry):
    write_header(tmp_path / "x.safetensors", f'{{"a": {entry}}}')
    with pytest.raises(PastryError, match=r"x.safetensors: not a valid safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_half_of_a_surrogate_pair_is_no_name(tmp_path):
    entry = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    write_header(tmp_path / "x.safetensors", f'{{"\\ud800": {entry}}}')
    with pytest.raises(PastryError, match="the header is not JSON"):
        read_header(tmp_path / "x.safetensors")
    write_header(tmp_path / "x.safetensors", f'{{"\\ud83d\\ude00": {entry}, "__metadata__": null}}')
    assert list(read_header(tmp_path / "x.safetensors")) == ["😀"]
    assert parse_json('"\\\\ud800"') == "\\ud800"
    (tmp_path / "a.json").write_text('{"a": "\\udc00"}')
    with pytest.raises(PastryError, match=r"a.json: not valid JSON"):
        read_json(tmp_path / "a.json")


def test_depth_of_documents(tmp_path):
    for depth, fits in [(100, True), (101, False), (900, False)]:
        (tmp_path / "a.json").write_text('{"a":' * depth + "1" + "}" * depth)
        if fits:
            read_json(tmp_path / "a.json")
            continue
        with pytest.raises(PastryError, match="nested deeper than 100 levels"):
            read_json(tmp_path / "a.json")


def test_pipes_devices_and_long_names(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    for read in (read_text, read_header):
        with pytest.raises(PastryError, match="not a regular file"):
            read(tmp_path / "pipe.safetensors")
    with pytest.raises(PastryError, match="not a regular file"):
        TensorDirectory(tmp_path)
    with pytest.raises(PastryError, match="no such directory"):
        TensorDirectory(tmp_path / ("x" * 5000))
    weight_map = {"a": "x" * 5000 + ".safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(PastryError, match="does not exist"):
        TensorDirectory(tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    end, start = (checkpoint(tmp_path / name, seed) for seed, name in enumerate(("end", "start")))
    (end / os.fsdecode(b"notes-\xff")).write_text("")
    extract(end, start, tmp_path / "v", name="skill")
    bad = tmp_path / os.fsdecode(b"bad-\xff")
    start.rename(bad)
    with pytest.raises(PastryError, match="the path is not UTF-8") as caught:
        Checkpoint(bad)
    str(caught.value).encode()
    (end / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(PastryError, match=r"chat_template.jinja: not valid UTF-8 text"):
        _ = Checkpoint(end).architecture


def test_recipes_and_rules():
    for text in ("t\udc80", "t+a\udc80", "t+a:0.5\0", "t\u202e"):
        with pytest.raises(PastryError, match="cannot be printed"):
            parse_recipe(text)
    for rule in ("/a{99999999999999999999}/=1", "/" + "(" * 5000 + ")" * 5000 + "/=1", f"mlp[0-{'9' * 5000}]=1"):
        with pytest.raises(PastryError, match=r"is not a regular expression|cannot read the rule"):
            parse_lambda(rule, "--skill")
    lam = parse_lambda("all=1e308~-1e308", "--skill")
    assert lam.per_tensor([f"model.layers.{i}.mlp.w" for i in range(3)])["model.layers.1.mlp.w"] == 0
    assert layer_and_module(f"model.layers.{'9' * 5000}.mlp.weight")[0] == "-"


def write_header(file, text):
    header = text.encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
