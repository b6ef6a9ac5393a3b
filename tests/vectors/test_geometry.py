import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.geometry import CheckpointUpdate, SkillUpdate, cosine, cosine_table, layer_and_module
from tests.vectors.conftest import random_tensors


def direct(a, b):
    a, b = (torch.cat([tensor.double().flatten() for tensor in side]) for side in (a, b))
    return pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-6)


def test_table_and_whole_against_a_direct_computation(save, tmp_path):
    base, start, end = (random_tensors(seed) for seed in (0, 1, 2))
    paths = {"base": save("base", base), "start": save("start", start), "end": save("end", end)}
    extract(paths["end"], paths["start"], tmp_path / "v", name="v")
    skill, sft = SkillUpdate(tmp_path / "v"), CheckpointUpdate(paths["start"], paths["base"])
    v = {name: end[name] - start[name] for name in end}
    u = {name: start[name] - base[name] for name in end}

    assert cosine(skill, sft) == direct(v.values(), u.values())
    assert cosine(skill, sft) == pytest.approx(-0.5, abs=0.1)
    assert cosine(skill, skill) == pytest.approx(1.0, abs=1e-12)
    table = cosine_table(skill, sft)
    modules = {
        ("0", "self_attn.q_proj"): ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"],
        ("1", "self_attn.q_proj"): ["model.layers.1.self_attn.q_proj.weight"],
        ("1", "mlp.down_proj"): ["model.layers.1.mlp.down_proj.weight"],
        ("-", "embed_tokens"): ["model.embed_tokens.weight"],
        ("-", "norm"): ["model.norm.weight"],
        ("-", "lm_head"): ["lm_head.weight"],
    }
    assert list(table) == ["0", "1", "-"]
    assert {(layer, module) for layer, row in table.items() for module in row} == modules.keys()
    for (layer, module), names in modules.items():
        assert table[layer][module] == direct([v[n] for n in names], [u[n] for n in names])


def test_zero_update_has_no_direction(save):
    tensors = random_tensors(0)
    moved = {**random_tensors(1), "model.norm.weight": tensors["model.norm.weight"]}
    a, b = save("a", tensors), save("b", moved)
    table = cosine_table(CheckpointUpdate(b, a), CheckpointUpdate(b, a))
    assert table["-"]["norm"] is None and table["-"]["lm_head"] == pytest.approx(1.0)
    assert cosine(CheckpointUpdate(a, a), CheckpointUpdate(b, a)) is None


def test_layers_are_ordered_as_numbers_and_other_towers_kept_apart(save):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (10, 2, 0)]
    a, b = (save(key, random_tensors(seed, shapes=dict.fromkeys(names, (2,)))) for seed, key in enumerate("ab"))
    assert list(cosine_table(CheckpointUpdate(a, b), CheckpointUpdate(b, a))) == ["0", "2", "10"]
    assert layer_and_module("transformer.h.7.attn.c_attn.bias") == ("7", "attn.c_attn")
    assert layer_and_module("model.visual.layers.3.attn.weight") == ("-", "visual.layers.3.attn")


def test_updates_of_different_models_are_refused(save):
    a = save("a", random_tensors(0))
    b = save("b", {name: tensor for name, tensor in random_tensors(0).items() if name != "model.norm.weight"})
    with pytest.raises(PastryError, match=r"tensor model.norm.weight is in .*a but not in .*b"):
        cosine(CheckpointUpdate(a, a), CheckpointUpdate(b, b))
