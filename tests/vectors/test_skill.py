import json

import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.random_vector import random_like
from pastry.vectors.skill import Skill
from tests.vectors.conftest import edit_json, nearby, random_tensors


@pytest.fixture
def vector(save, tmp_path):
    start = random_tensors(0)
    extract(save("end", nearby(start, 1, 0.1)), save("start", start), tmp_path / "v", name="math")
    return tmp_path / "v"


@pytest.mark.parametrize("position", [0.0, 0.37, 0.9999])
def test_verify_finds_a_flipped_bit_anywhere_and_says_where(vector, position):
    Skill(vector).verify()
    file = vector / "skill.safetensors"
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    at = 8 + header + int(position * (len(content) - 8 - header))
    content[at] ^= 4
    file.write_bytes(content)
    offsets = {n: e["data_offsets"] for n, e in json.loads(content[8 : 8 + header]).items() if n != "__metadata__"}
    damaged = [n for n, (begin, end) in offsets.items() if begin <= at - 8 - header < end]
    with pytest.raises(PastryError, match=f"tensor {damaged[0]} has digest"):
        Skill(vector).verify()
    with pytest.raises(PastryError, match="damaged"):
        Skill(vector).read(damaged[0])


def test_manifest_errors_name_the_key(vector):
    manifest = json.loads((vector / "skill.json").read_text())
    for change, message in [
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"schema_version": 1}, "schema_version: Input should be 2"),
        ({"norm": "NaN"}, "norm: Input should be a finite number"),
        ({"name": "a+b"}, "name: String should match"),
    ]:
        (vector / "skill.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(PastryError, match=f"skill.json: {message}"):
            Skill(vector)
    (vector / "skill.json").unlink()
    with pytest.raises(PastryError, match=r"no skill.json, so this is not a skill vector"):
        Skill(vector)


def test_manifest_and_headers_must_agree(vector):
    tensors = json.loads((vector / "skill.json").read_text())["tensors"]
    edit_json(vector / "skill.json", tensors={n: t for n, t in tensors.items() if n != "model.norm.weight"})
    with pytest.raises(PastryError, match=r"tensor model.norm.weight is only in the safetensors files"):
        Skill(vector)
    edit_json(vector / "skill.json", tensors={**tensors, "ghost": tensors["model.norm.weight"]})
    with pytest.raises(PastryError, match=r"tensor ghost is only in skill.json"):
        Skill(vector)
    edit_json(
        vector / "skill.json",
        tensors={**tensors, "model.norm.weight": {**tensors["model.norm.weight"], "shape": [4, 4]}},
    )
    with pytest.raises(PastryError, match=r"tensor model.norm.weight is float32 \[16\], skill.json says float32 \[4, 4\]"):
        Skill(vector)
    edit_json(vector / "skill.json", tensors=tensors, fingerprint="sha256:0")
    with pytest.raises(PastryError, match="fingerprint"):
        Skill(vector).verify()


def test_random_vector_has_the_norms_and_another_direction(vector, tmp_path):
    skill = Skill(vector)
    manifest = random_like(vector, tmp_path / "r", seed=3)
    random = Skill(tmp_path / "r")
    random.verify()
    assert manifest == random.manifest
    assert manifest.method == "random" and manifest.control_of == skill.manifest.fingerprint and manifest.end is None
    for name, tensor in skill.manifest.tensors.items():
        assert random.read(name).double().norm().item() == pytest.approx(tensor.norm, rel=1e-6)
        cosine = torch.cosine_similarity(random.read(name).flatten().double(), skill.read(name).flatten().double(), dim=0)
        assert abs(cosine) < 5 / tensor_size(tensor.shape) ** 0.5
    assert manifest.norm == pytest.approx(skill.manifest.norm, rel=1e-6)
    assert random_like(vector, tmp_path / "again", seed=3) == manifest
    assert random_like(vector, tmp_path / "other", seed=4).fingerprint != manifest.fingerprint
    with pytest.raises(PastryError, match="already exists"):
        random_like(vector, tmp_path / "r", seed=3)


def tensor_size(shape):
    return torch.Size(shape).numel()
