import json

import pytest
import torch
from safetensors.torch import save_file

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from tests.vectors.conftest import SHAPES, edit_json, load, random_tensors, same_bits

INDEX = "model.safetensors.index.json"


def test_reads_single_sharded_and_other_names_alike(save):
    tensors = random_tensors(0)
    single = save("single", tensors)
    sharded = save("sharded", tensors, max_shard_bytes=2000)
    unindexed = save("unindexed", tensors, max_shard_bytes=2000)
    (unindexed / INDEX).unlink()
    assert len(list(sharded.glob("*.safetensors"))) > 2
    for path in (single, sharded, unindexed):
        checkpoint = Checkpoint(path)
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == SHAPES
        assert {info.dtype for info in checkpoint.tensors.values()} == {"float32"}
        assert same_bits(load(path), tensors)
        assert checkpoint.config["vocab_size"] == 32
    assert max(file.stat().st_size for file in sharded.glob("*.safetensors")) < 3000 + 16 * 48 * 4


def test_files_do_not_depend_on_the_order_of_names(save):
    tensors = random_tensors(0)
    a = save("a", tensors, max_shard_bytes=2000)
    b = save("b", dict(reversed(tensors.items())), max_shard_bytes=2000)
    assert {f.name: f.read_bytes() for f in a.iterdir()} == {f.name: f.read_bytes() for f in b.iterdir()}


def test_missing_and_foreign_directories(tmp_path):
    with pytest.raises(PastryError, match="no such directory"):
        Checkpoint(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PastryError, match=r"found pytorch_model.bin; pickle files are never read"):
        Checkpoint(tmp_path)
    with pytest.raises(PastryError, match="is a file"):
        Checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../other.safetensors", "wanted the name of a .safetensors file in this directory"),
        ("/etc/passwd", "wanted the name of a .safetensors file in this directory"),
        (7, "wanted the name of a .safetensors file in this directory"),
        ("gone.safetensors", "gone.safetensors, which does not exist"),
    ],
)
def test_index_that_names_a_wrong_file(save, file, message):
    path = save("c", random_tensors(0), max_shard_bytes=2000)
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    edit_json(path / INDEX, weight_map={**weight_map, "lm_head.weight": file})
    with pytest.raises(PastryError, match=message) as error:
        Checkpoint(path)
    assert "lm_head.weight" in str(error.value)


def test_index_and_files_must_agree(save):
    path = save("c", random_tensors(0), max_shard_bytes=2000)
    weight_map = json.loads((path / INDEX).read_text())["weight_map"]
    edit_json(path / INDEX, weight_map={**weight_map, "extra": weight_map["lm_head.weight"]})
    with pytest.raises(PastryError, match=r"tensor extra is in .* but it is not there"):
        Checkpoint(path)
    files = list(weight_map.values())
    neighbour = next(name for name, file in weight_map.items() if files.count(file) > 1)
    edit_json(path / INDEX, weight_map={name: file for name, file in weight_map.items() if name != neighbour})
    with pytest.raises(PastryError, match=f"tensor {neighbour} is not in the index"):
        Checkpoint(path)
    edit_json(path / INDEX, weight_map={})
    with pytest.raises(PastryError, match="weight_map is missing or empty"):
        Checkpoint(path)


def test_tensor_stored_twice(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(2)}, tmp_path / file)
    with pytest.raises(PastryError, match=r"tensor w is also in a.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:20], lambda b: b[:-4], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_corrupt_file(save, damage):
    path = save("c", random_tensors(0)) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PastryError, match=r"model.safetensors: not a valid safetensors file"):
        Checkpoint(path.parent)
