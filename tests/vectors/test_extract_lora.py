"""Skill vectors out of LoRA adapters, against PEFT itself."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pastry.commands import vector
from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.fingerprint import tensor_digest
from pastry.vectors.inject import inject
from pastry.vectors.lora.export import to_lora
from pastry.vectors.lora.extract import extract_adapters, extract_lora
from pastry.vectors.lora.factored import FactoredSkill, open_skill
from pastry.vectors.lora.merge import merge_adapter
from pastry.vectors.rounding import Scratch
from tests.vectors.conftest import edit_json, load, same_bits
from tests.vectors.lora_models import load_model, logits, materialise, merged, save_adapter, save_base, whole


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def make_adapter(base, tmp_path):
    """make_adapter(name, seed, **LoraConfig) writes a random PEFT adapter on the base and returns its directory."""
    return lambda name, seed, **settings: save_adapter(base, tmp_path / name, seed, **settings)


@pytest.mark.parametrize(
    "end, start",
    [
        ({}, {}),
        ({}, None),
        ({"use_rslora": True}, {"r": 2}),
        (
            {"rank_pattern": {"layers.0.self_attn.q_proj": 6}, "alpha_pattern": {"down_proj": 5, r"layers\.1.*q_proj": 7}},
            {"target_modules": ["q_proj", "o_proj"], "alpha_pattern": {"o_proj": 3}},
        ),
    ],
)
def test_factored_vector_is_the_difference_of_the_merged_models(make_adapter, base, tmp_path, end, start):
    adapters = [make_adapter("end", 1, **end), None if start is None else make_adapter("start", 2, **start)]
    manifest = extract_lora(*adapters, tmp_path / "v", name="math", base=base, domain="math")
    skill = open_skill(tmp_path / "v")
    assert isinstance(skill, FactoredSkill) and skill.manifest == manifest and manifest.domain == "math"
    assert skill.tensors.keys() == Checkpoint(base).tensors.keys() and skill.architecture.model_type == "llama"
    skill.verify()
    assert all(tensor_digest(skill.tensors[n], skill.block_digests(n)) == t.digest for n, t in manifest.tensors.items())
    after, before = (merged(base, adapter) for adapter in adapters)
    touched = [name for name, tensor in manifest.tensors.items() if tensor.terms]
    assert len(touched) == (8 if start and "target_modules" in start else 6)
    for name, tensor in manifest.tensors.items():
        values = whole(skill, name)
        exact = (after[name].double() - before[name].double()).flatten().numpy()
        assert np.abs(values - exact).max() < 1e-6 and tensor.shape == tuple(after[name].shape)
        assert tensor.norm == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-6, abs=1e-12)
        assert (name in touched) == bool(values.any()) == (tensor.norm > 0)
        assert tensor.zeros == (values == 0).sum()
        assert torch.equal(skill.read(name), torch.from_numpy(values).reshape(tensor.shape))
    assert manifest.norm == pytest.approx(sum(t.norm**2 for t in manifest.tensors.values()) ** 0.5)


@pytest.mark.parametrize("start, stop", [(0, 1), (3, 40), (15, 17), (16, 32), (100, 383), (383, 384)])
def test_blocks_need_not_end_with_rows(make_adapter, base, tmp_path, start, stop):
    extract_lora(make_adapter("end", 1), make_adapter("start", 2), tmp_path / "v", name="v", base=base)
    skill, name = FactoredSkill(tmp_path / "v"), "model.layers.1.mlp.down_proj.weight"
    values, stored = skill.widened_block(name, start, stop, Scratch())
    assert values.dtype == np.float32 and np.array_equal(values, whole(skill, name)[start:stop])
    assert np.array_equal(stored, values)


def test_wide_matrices_are_multiplied_in_pieces(save, tmp_path):
    weights = {"wide.weight": torch.zeros(3, 1300)}
    generator = torch.Generator().manual_seed(0)
    factors = {"A": torch.randn(2, 1300, generator=generator), "B": torch.randn(3, 2, generator=generator)}
    (tmp_path / "end").mkdir()
    named = {f"base_model.model.wide.lora_{side}.weight": tensor for side, tensor in factors.items()}
    save_file(named, tmp_path / "end" / "adapter_model.safetensors")
    (tmp_path / "end" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 3}')
    extract_lora(tmp_path / "end", None, tmp_path / "v", name="v", base=save("base", weights))
    skill = FactoredSkill(tmp_path / "v")
    exact = 1.5 * (factors["B"].double() @ factors["A"].double())
    # Products of float32 in float64, rounded once: nothing nearer to the exact number exists.
    assert np.array_equal(whole(skill, "wide.weight"), exact.float().flatten().numpy())
    values = skill.widened_block("wide.weight", 1100, 3001, Scratch())[0]
    assert np.array_equal(values, exact.float().flatten().numpy()[1100:3001])


def test_injecting_the_factored_vector_gives_the_end_and_leaves_the_rest_alone(make_adapter, base, tmp_path):
    end, start = make_adapter("end", 1), make_adapter("start", 2)
    extract_lora(end, start, tmp_path / "v", name="math", base=base)
    PeftModel.from_pretrained(load_model(base), start).merge_and_unload().save_pretrained(tmp_path / "merged")
    inject(tmp_path / "merged", [(tmp_path / "v", 1.0)], tmp_path / "out")
    inject(tmp_path / "merged", [(materialise(tmp_path / "v", tmp_path / "dense"), 1.0)], tmp_path / "from_dense")
    assert same_bits(load(tmp_path / "out"), load(tmp_path / "from_dense"))
    before, after, wanted = load(tmp_path / "merged"), load(tmp_path / "out"), merged(base, end)
    for name, tensor in after.items():
        if FactoredSkill(tmp_path / "v").manifest.tensors[name].terms:
            torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(tensor.view(torch.int32), before[name].view(torch.int32))
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(PeftModel.from_pretrained(load_model(base), end)))


def test_layers_that_rl_left_alone_are_exactly_zero(make_adapter, base, tmp_path):
    end, start = make_adapter("end", 1), make_adapter("start", 1)
    assert extract_lora(end, start, tmp_path / "none", name="none", base=base).norm == 0
    tensors = load_file(end / "adapter_model.safetensors")
    changed = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file(tensors | {changed: tensors[changed] * 1.000001}, end / "adapter_model.safetensors")
    manifest = extract_lora(end, start, tmp_path / "v", name="v", base=base)
    assert [name for name, tensor in manifest.tensors.items() if tensor.norm] == ["model.layers.0.self_attn.q_proj.weight"]
    skill = FactoredSkill(tmp_path / "v")
    old = tensors[changed].double()
    factor_a = tensors[changed.replace("lora_B", "lora_A")].double()
    exact = 1.5 * ((tensors[changed] * 1.000001).double() - old) @ factor_a
    name = "model.layers.0.self_attn.q_proj.weight"
    # A millionth of each term is left: float32 products would have lost a tenth of it.
    np.testing.assert_allclose(whole(skill, name), exact.flatten().numpy(), rtol=1e-5, atol=float(exact.abs().max()) * 1e-7)
    assert manifest.norm == pytest.approx(float(exact.norm()), rel=1e-6)


def test_a_factored_vector_goes_back_to_an_adapter(make_adapter, base, tmp_path):
    extract_lora(make_adapter("end", 1), make_adapter("start", 2, r=2), tmp_path / "v", name="v", base=base)
    assert to_lora(tmp_path / "v", tmp_path / "lora", rank=6).energy == pytest.approx(1, abs=1e-6)
    assert to_lora(tmp_path / "v", tmp_path / "less", rank=5).energy < 1 - 1e-4


def test_damage_is_found_when_it_is_read(make_adapter, base, tmp_path):
    manifest = extract_lora(make_adapter("end", 1), None, tmp_path / "v", name="v", base=base)
    file, name = tmp_path / "v" / "factors.safetensors", "model.layers.0.mlp.down_proj.weight"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(PastryError, match="has digest"):
        FactoredSkill(tmp_path / "v").verify()
    content[-5] ^= 1
    file.write_bytes(content)
    tensors = json.loads((tmp_path / "v" / "skill.json").read_text())["tensors"]
    for terms, message in [
        ([[4, 1.25]], f"tensor {name} has digest"),
        ([[3, 1.5]], rf"factor {name}.lora_A is float32 \[4, 24\], skill.json says float32 \[3, 24\]"),
        ([], f"factor {name}.lora_A is float32 .* says not there"),
    ]:
        edit_json(tmp_path / "v" / "skill.json", tensors={**tensors, name: {**tensors[name], "terms": terms}})
        with pytest.raises(PastryError, match=message):
            list(FactoredSkill(tmp_path / "v").widened_block(name, 0, 10, Scratch()))
    edit_json(tmp_path / "v" / "skill.json", tensors=tensors, fingerprint=manifest.fingerprint[:-1] + "x")
    with pytest.raises(PastryError, match="fingerprint is"):
        FactoredSkill(tmp_path / "v").verify()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"use_dora": True}, "use_dora is True, wanted none"),
        ({"bias": "all"}, "bias is 'all', wanted 'none'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save is \['norm'\]"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.* is no LoRA factor of a linear layer"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused(make_adapter, base, tmp_path, settings, message):
    if "init_lora_weights" not in settings and "use_dora" not in settings:
        settings = {**settings, "init_lora_weights": True}
    with pytest.raises(PastryError, match=message):
        extract_lora(make_adapter("end", 1, **settings), None, tmp_path / "v", name="v", base=base)
    assert not (tmp_path / "v").exists()


def test_adapters_that_do_not_fit_are_refused(make_adapter, base, save, tmp_path):
    end, start = make_adapter("end", 1), make_adapter("start", 2)
    for changes, message in [
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', wanted 'LORA'"),
        ({"r": 5}, r"q_proj has lora_A \[4, 16\] and lora_B \[16, 4\], adapter_config.json says rank 5|down_proj has lora_A"),
        ({"r": "many"}, "r: Input should be a valid integer"),
        ({"base_model_name_or_path": "a/model"}, "was trained on 'a/model', .*start on '.*base'"),
    ]:
        original = (end / "adapter_config.json").read_text()
        edit_json(end / "adapter_config.json", **changes)
        with pytest.raises(PastryError, match=message):
            extract_lora(end, start, tmp_path / "v", name="v", base=base)
        (end / "adapter_config.json").write_text(original)
    with pytest.raises(PastryError, match=r"down_proj.weight \[16, 24\], .*has no such tensor; give the checkpoint"):
        extract_lora(end, start, tmp_path / "v", name="v", base=save("other", {"w": torch.zeros(2)}))
    tensors = load_file(end / "adapter_model.safetensors")
    first = min(tensors)
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, end / "adapter_model.safetensors")
    with pytest.raises(PastryError, match=r"end: tensor .*lora_A.weight is nan at index \[0, 0\]"):
        extract_lora(end, start, tmp_path / "v", name="v", base=base)
    del tensors[first]
    save_file(tensors, end / "adapter_model.safetensors")
    with pytest.raises(PastryError, match="has only lora_B, wanted both"):
        extract_lora(end, start, tmp_path / "v", name="v", base=base)
    assert not (tmp_path / "v").exists()


def test_one_adapter_needs_its_own_base(make_adapter, base, save, tmp_path):
    end, other = make_adapter("end", 1), save("other", load(base))
    whole_base = extract_adapters(end, base, tmp_path / "v", name="v", base=None)
    assert whole_base == extract_adapters(end, base, tmp_path / "again", name="v", base=base) and whole_base.start is None
    for arguments, message in [
        ((end, other, base), "is an adapter, but --start .*other is neither an adapter nor the checkpoint given with --base"),
        ((other, end, base), "is an adapter, but --end .*other is neither"),
        ((base, end, base), "is an adapter, but --end .*base is neither"),
        ((end, end, None), "give the checkpoint they were trained on with --base"),
    ]:
        with pytest.raises(PastryError, match=message):
            extract_adapters(*arguments[:2], tmp_path / "w", name="v", base=arguments[2])


def test_command(make_adapter, base, tmp_path):
    end, start, v = make_adapter("end_adapter", 1), make_adapter("start_adapter", 2), tmp_path / "v"
    arguments = ["extract", "--end", str(end), "--start", str(start), "--base", str(base), "--out", str(v), "--name", "math"]
    result = CliRunner().invoke(vector, [*arguments, "--dry-run"], catch_exceptions=False)
    assert "nothing was" in result.output and not v.exists()
    result = CliRunner().invoke(vector, arguments, catch_exceptions=False)
    assert "'math' out of LoRA adapters, in low-rank factors" in result.output
    assert "6 of 21 tensors changed, rank 8" in result.output
    result = CliRunner().invoke(vector, [*arguments, "--dtype", "bfloat16"])
    assert isinstance(result.exception, PastryError) and "stored in float32" in str(result.exception)


def test_a_merged_adapter_is_pefts_own_merge_in_float32(base, make_adapter, tmp_path):
    adapter = make_adapter("adapter", 1, target_modules="all-linear")
    merge_adapter(base, adapter, tmp_path / "merged")
    ours, theirs = load(tmp_path / "merged"), merged(base, adapter)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == torch.float32 and torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
