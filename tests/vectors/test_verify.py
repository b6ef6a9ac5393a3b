import shutil

import pytest

from pastry.errors import PastryError
from pastry.vectors.checkpoint import TensorDirectory, checkpoint_fingerprint
from pastry.vectors.extract import extract
from pastry.vectors.files import read_json, write_json
from pastry.vectors.inject import inject
from pastry.vectors.verify import verify
from tests.vectors.conftest import SHAPES, edit_json, random_tensors


@pytest.fixture
def vector(save, tmp_path):
    extract(save("end", random_tensors(1)), save("start", random_tensors(0)), tmp_path / "v", name="v", max_shard_bytes=4000)
    return tmp_path / "v"


def flip(file, position, bit=0):
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def test_an_intact_vector(vector):
    seen = []
    result = verify(vector, progress=lambda done, total: seen.append((done, total)))
    assert result.problem is None and not result.damaged and result.recorded_in == "skill.json"
    assert result.tensors == len(SHAPES) and result.fingerprint == read_json(vector / "skill.json")["fingerprint"]
    assert seen[-1][0] == seen[-1][1] == sum(info.nbytes for info in TensorDirectory(vector).tensors.values())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("end", "bit"), [("first", 0), ("first", 7), ("last", 0), ("last", 6)])
def test_one_flipped_bit_is_found_in_its_tensor(vector, name, end, bit):
    info = TensorDirectory(vector).tensors[name]
    flip(info.file, info.offset if end == "first" else info.offset + info.nbytes - 1, bit)
    result = verify(vector)
    assert list(result.damaged) == [name] and result.problem.startswith(f"tensor {name}: found blake3:")
    assert "skill.json says blake3:" in result.problem and "\n" not in result.problem


def test_every_damaged_tensor_is_listed(vector):
    for name in ("lm_head.weight", "model.norm.weight"):
        info = TensorDirectory(vector).tensors[name]
        flip(info.file, info.offset + 2)
    result = verify(vector)
    assert list(result.damaged) == ["lm_head.weight", "model.norm.weight"] and "2 tensors of 7 are damaged" in result.problem


def test_a_flipped_bit_in_a_header_is_found_wherever_it_changes_a_tensor(vector):
    file = sorted(vector.glob("*.safetensors"))[0]
    intact = file.read_bytes()
    tensors = {name: (info.dtype, info.shape) for name, info in TensorDirectory(vector).tensors.items()}
    header = 8 + int.from_bytes(intact[:8], "little")
    missed = 0
    for position in range(header):
        flip(file, position, position % 8)
        try:
            if verify(vector).problem is None:
                missed += 1
                assert {n: (i.dtype, i.shape) for n, i in TensorDirectory(vector).tensors.items()} == tensors
        except PastryError as error:
            assert "\n" not in str(error)
        file.write_bytes(intact)
    assert missed < 20  # the words of __metadata__, which describe no tensor


def test_a_manifest_that_was_changed(vector):
    edit_json(vector / "skill.json", fingerprint="blake3:00")
    assert "skill.json says blake3:00" in verify(vector).problem


def injected(save, vector, tmp_path):
    inject(save("target", random_tensors(2)), [(vector, 1.0)], tmp_path / "injected")
    return tmp_path / "injected"


def test_an_injected_checkpoint_is_checked_against_its_report(save, vector, tmp_path):
    path = injected(save, vector, tmp_path)
    assert verify(path).problem is None and verify(path).recorded_in == "inject.json"
    report = read_json(path / "inject.json")
    assert {name: tensor["digest"] for name, tensor in report["tensors"].items()} == TensorDirectory(path).digests()
    info = TensorDirectory(path).tensors["model.norm.weight"]
    flip(info.file, info.offset)
    assert list(verify(path).damaged) == ["model.norm.weight"]
    del report["tensors"]["lm_head.weight"]
    write_json(path / "inject.json", report)
    assert verify(path).damaged["lm_head.weight"]["wanted"] is None


def test_a_report_that_is_none(save, vector, tmp_path):
    path = injected(save, vector, tmp_path)
    edit_json(path / "inject.json", tensors=[1])
    with pytest.raises(PastryError, match=r"inject.json: not a report"):
        verify(path)


def test_any_checkpoint_against_a_fingerprint(save):
    path = save("model", random_tensors(0))
    with pytest.raises(PastryError, match=r"nothing is recorded; give --fingerprint"):
        verify(path)
    right = checkpoint_fingerprint(path)
    assert verify(path, right).problem is None
    assert "--fingerprint says blake3:00" in verify(path, "blake3:00").problem


def test_a_copy_that_ends_too_early_names_the_file(vector, tmp_path):
    shutil.copytree(vector, tmp_path / "copy")
    file = sorted((tmp_path / "copy").glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PastryError, match=file.name):
        verify(tmp_path / "copy")
