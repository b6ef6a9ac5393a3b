import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.checkpoint import checkpoint_fingerprint
from pastry.vectors.extract import extract
from pastry.vectors.skill import Skill
from tests.vectors.conftest import load, nearby, random_tensors


def test_vector_is_the_difference_and_the_manifest_describes_it(save, tmp_path):
    base, start = random_tensors(0), random_tensors(1)
    end = nearby(start, 2, 0.1)
    paths = {"base": save("base", base), "start": save("start", start, max_shard_bytes=2000), "end": save("end", end)}
    facts = {
        "domain": "math",
        "data_digest": "sha256:1",
        "seed": 7,
        "training_run": "run",
        "lambda_advice": 0.8,
        "scores": {"acc": 0.5},
    }
    manifest = extract(paths["end"], paths["start"], tmp_path / "v", name="math", base=paths["base"], **facts)
    skill = Skill(tmp_path / "v")
    skill.verify()
    assert skill.manifest == manifest
    assert manifest.model_dump(include=set(facts)) == facts
    for role, path in paths.items():
        assert getattr(manifest, role) == checkpoint_fingerprint(path)
    v = {name: (end[name] - start[name]) for name in end}
    sft = {name: (start[name].double() - base[name].double()).flatten() for name in end}
    for name, tensor in manifest.tensors.items():
        assert torch.equal(skill.read(name), v[name])
        assert tensor.norm == pytest.approx(v[name].double().norm().item())
        expected = torch.cosine_similarity(v[name].double().flatten(), sft[name], dim=0).item()
        assert tensor.cosine_to_sft == pytest.approx(expected, abs=1e-6)
        assert tensor.not_restored == 0
    whole_v, whole_sft = torch.cat([v[n].double().flatten() for n in v]), torch.cat([sft[n] for n in v])
    assert manifest.norm == pytest.approx(whole_v.norm().item())
    assert manifest.cosine_to_sft == pytest.approx(torch.cosine_similarity(whole_v, whole_sft, dim=0).item(), abs=1e-6)
    assert (manifest.method, manifest.stored_dtype, manifest.source_dtypes) == ("difference", "float32", ["float32"])
    assert manifest.architecture.model_type == "llama" and manifest.architecture.chat_template_digest


def test_bfloat16_storage_and_what_it_does_not_restore(save, tmp_path):
    start = random_tensors(0)
    end = nearby(start, 1, 0.1)
    manifest = extract(save("end", end), save("start", start, torch.bfloat16), tmp_path / "v", name="v", dtype="bfloat16")
    skill = Skill(tmp_path / "v")
    unrestored = 0
    for name in end:
        assert torch.equal(skill.read(name), (end[name] - start[name].bfloat16().float()).bfloat16())
        unrestored += int((start[name].bfloat16().float() + skill.read(name).float() != end[name]).sum())
    assert manifest.source_dtypes == ["bfloat16", "float32"] and manifest.stored_dtype == "bfloat16"
    assert manifest.not_restored == unrestored > 0
    assert manifest.base is None and manifest.cosine_to_sft is None


def test_no_change_is_a_zero_vector_without_direction(save, tmp_path):
    path = save("c", random_tensors(0))
    manifest = extract(path, path, tmp_path / "v", name="v", base=save("base", random_tensors(1)))
    assert manifest.norm == 0 and manifest.cosine_to_sft is None
    assert all(tensor.cosine_to_sft is None for tensor in manifest.tensors.values())
    assert not any(tensor.any() for tensor in load(tmp_path / "v").values())


def test_restoring_is_judged_by_bits(save, tmp_path):
    start = {"w": torch.tensor([0.0, -0.0, 1.0, 1.0])}
    # 0.0 + (−0.0 − 0.0) is 0.0, and 1 + fl(1e-9 − 1) is 0: the first and the last do not come back.
    end = {"w": torch.tensor([-0.0, -0.0, 0.75, 1e-9])}
    assert extract(save("end", end), save("start", start), tmp_path / "v", name="v").not_restored == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["end", "start", "base"])
def test_non_finite_weights_are_refused_and_nothing_is_left(save, tmp_path, role, value):
    weights = {key: random_tensors(seed) for seed, key in enumerate(("end", "start", "base"))}
    weights[role]["model.layers.1.mlp.down_proj.weight"][2, 3] = value
    paths = {key: save(key, tensors) for key, tensors in weights.items()}
    with pytest.raises(PastryError, match=rf"{role}: tensor model.layers.1.mlp.down_proj.weight is {value} at index \[2, 3\]"):
        extract(paths["end"], paths["start"], tmp_path / "v", name="v", base=paths["base"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "end", "start"]


def test_mistakes_are_refused_before_writing(save, tmp_path):
    path = save("c", random_tensors(0))
    for arguments, message in [
        ({"dtype": "int8"}, "dtype 'int8' is not supported; wanted one of float32, bfloat16, float16"),
        ({"domian": "math"}, "domian: Extra inputs are not permitted"),
        ({"name": "two words"}, "name: String should match pattern"),
    ]:
        with pytest.raises(PastryError, match=message):
            extract(path, path, tmp_path / "v", **{"name": "v", **arguments})
    with pytest.raises(PastryError, match="already exists"):
        extract(path, path, path, name="v")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
