"""LoRA adapters out of skill vectors, against PEFT itself."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from pastry.commands import vector
from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry.vectors.lora import truncation
from pastry.vectors.lora.export import to_lora
from pastry.vectors.skill import Skill
from tests.vectors.conftest import load
from tests.vectors.lora_models import load_model, logits, save_base


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


@pytest.fixture
def make_skill(base, save, tmp_path):
    """make_skill(rank, elsewhere): the directory of a vector of this rank in every linear layer, and its numbers."""

    def make_skill(rank, elsewhere=0.0):
        generator = torch.Generator().manual_seed(rank)
        start, end = load(base), {}
        for name, tensor in start.items():
            factors = [
                torch.randn(shape, generator=generator) * 0.2 for shape in ((len(tensor), rank), (rank, tensor.shape[-1]))
            ]
            change = factors[0] @ factors[1] if name.endswith("proj.weight") else torch.full(tensor.shape, elsewhere)
            end[name] = tensor + change
        extract(save("end", end), base, tmp_path / "v", name="math")
        return tmp_path / "v", load(tmp_path / "v")

    return make_skill


@pytest.mark.parametrize("lam", [1.0, 0.8, -1.5])
def test_adapter_of_a_vector_of_its_rank_is_the_injected_model(make_skill, base, tmp_path, lam):
    path, _ = make_skill(3)
    report = to_lora(path, tmp_path / "lora", rank=3, lam=lam, base_model="the/base")
    assert report.energy == pytest.approx(1, abs=1e-6)
    assert all(kept == pytest.approx(1, abs=1e-6) for kept in report.modules.values()) and len(report.modules) == 14
    inject(base, [(path, lam)], tmp_path / "injected")
    model = PeftModel.from_pretrained(load_model(base), tmp_path / "lora")
    assert model.peft_config["default"].base_model_name_or_path == "the/base"
    wanted = logits(load_model(tmp_path / "injected"))
    assert not torch.allclose(wanted, logits(load_model(base)), atol=1e-3)
    torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-4)
    restored = model.merge_and_unload().state_dict()
    for name, tensor in load(tmp_path / "injected").items():
        torch.testing.assert_close(restored[name], tensor, atol=1e-6, rtol=1e-5)


def test_strength_set_in_peft_is_lambda(make_skill, base, tmp_path):
    path, _ = make_skill(3)
    to_lora(path, tmp_path / "lora", rank=3)
    inject(base, [(path, 0.3)], tmp_path / "injected")
    wanted = logits(load_model(tmp_path / "injected"))
    model = PeftModel.from_pretrained(load_model(base), tmp_path / "lora")
    model.add_weighted_adapter(["default"], [0.3], "weighted")
    model.set_adapter("weighted")
    torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-4)
    model.set_adapter("default")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.3)
    torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-4)


def test_energy_is_that_of_the_leading_singular_values(make_skill, tmp_path):
    path, v = make_skill(3, elsewhere=1e-3)
    report = to_lora(path, tmp_path / "lora", rank=1)
    squares = {
        name: np.linalg.svd(t.double().numpy(), compute_uv=False) ** 2 for name, t in v.items() if name.endswith("proj.weight")
    }
    total = sum(float(tensor.double().square().sum()) for tensor in v.values())
    for name, own in squares.items():
        assert report.modules[name.removesuffix(".weight")] == pytest.approx(own[0] / own.sum(), abs=1e-6)
    assert report.energy == pytest.approx(sum(own[0] for own in squares.values()) / total, abs=1e-6)
    for group, part in {"embeddings": ("embed_tokens", "lm_head"), "norms": ("norm",)}.items():
        share = sum(float(t.double().square().sum()) for name, t in v.items() if any(p in name for p in part)) / total
        assert report.left_out[group] == pytest.approx(share, rel=1e-6)
    assert json.loads((tmp_path / "lora" / "lora.json").read_text()) == report.model_dump()
    assert report.fingerprint == Skill(path).manifest.fingerprint

    by_rank = sum(np.pad(own, (0, 16 - len(own))) for own in squares.values()).cumsum() / total
    for energy in (0.5, 0.9, 0.999):
        found = to_lora(path, tmp_path / f"{energy}", energy=energy)
        assert found.rank == np.searchsorted(by_rank, energy) + 1 and found.energy >= energy


def test_adapter_is_what_vllm_reads(make_skill, tmp_path):
    path, _ = make_skill(3)
    to_lora(path, tmp_path / "lora", rank=12, lam=0.5)  # above the rank that k_proj, 8 × 16, can have
    assert sorted(file.name for file in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "lora.json",
    ]
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], config["use_dora"], config["modules_to_save"]) == (
        (12, 6, "none", False, None)
    )
    assert config["target_modules"] == sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(tensors) == 28
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"].shape == (12, 16)
    assert tensors["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (8, 12)
    assert not any("rank_pattern" in key or "alpha_pattern" in key for key in config)


def test_exports_that_would_lose_something_silently_are_refused(make_skill, save, base, tmp_path):
    path, _ = make_skill(2, elsewhere=0.5)
    for settings, message in [
        ({"rank": 2}, r"is not in linear layers \(embeddings \d\d.\d+%, norms \d.\d+%\).*--leave-out"),
        ({"rank": 17, "leave_out": True}, "rank is 17, wanted 1 to 16"),
        ({"rank": 0, "leave_out": True}, "rank is 0, wanted 1 to 16"),
        ({"energy": 0.999, "leave_out": True}, r"energy is 0.999, wanted above 0 and at most 0\.\d+, which the linear layers"),
        ({}, "give --rank or --energy"),
        ({"rank": 2, "energy": 0.9}, "not both"),
        ({"rank": 2, "lam": float("nan")}, "λ is nan"),
    ]:
        with pytest.raises(PastryError, match=message):
            to_lora(path, tmp_path / "lora", **settings)
    report = to_lora(path, tmp_path / "lora", rank=2, leave_out=True)
    assert report.energy == pytest.approx(1 - sum(report.left_out.values()), abs=1e-6)
    with pytest.raises(PastryError, match="already exists"):
        to_lora(path, tmp_path / "lora", rank=2, leave_out=True)
    extract(base, base, tmp_path / "zero", name="zero")
    with pytest.raises(PastryError, match="the vector is zero"):
        to_lora(tmp_path / "zero", tmp_path / "other", rank=1)
    info = Skill(path).tensors["model.layers.1.self_attn.q_proj.weight"]
    content = bytearray(info.file.read_bytes())
    content[info.offset] ^= 1
    info.file.write_bytes(content)
    with pytest.raises(PastryError, match="has digest"):
        to_lora(path, tmp_path / "other", rank=2, leave_out=True)
    assert not (tmp_path / "other").exists()


def test_a_name_that_experts_share_is_written_in_full(save, tmp_path):
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.experts.0.up_proj.weight"]
    start, end = ({name: torch.full((4, 4), x) for name in names} for x in (0.0, 1.0))
    extract(save("end", end), save("start", start), tmp_path / "v", name="v")
    report = to_lora(tmp_path / "v", tmp_path / "lora", rank=1, leave_out=True)
    assert report.left_out == {"experts": 0.5}
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.mlp.up_proj"]


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_random_projection_finds_a_low_rank_matrix_and_nearly_the_best_of_another(monkeypatch, shape):
    generator = np.random.default_rng(0)
    low = (generator.standard_normal((shape[0], 5)) @ generator.standard_normal((5, shape[1]))).astype(np.float32)
    full = low + generator.standard_normal(shape).astype(np.float32)
    exact = truncation.residual(full, *truncation.leading_factors(full, 5, 1))[1]
    assert exact == pytest.approx(truncation.energies(full)[5:].sum(), rel=1e-5)
    monkeypatch.setattr(truncation, "EXACT_UP_TO", 40)
    own, lost = truncation.residual(low, *truncation.leading_factors(low, 5, 1))
    assert lost < 1e-10 * own
    b, a = truncation.leading_factors(full, 5, 1)
    assert exact <= truncation.residual(full, b, a)[1] < 1.001 * exact
    assert np.array_equal(b, truncation.leading_factors(full, 5, 1)[0]) and (b.shape, a.shape) == ((shape[0], 5), (5, shape[1]))


def test_command(make_skill, tmp_path):
    path, _ = make_skill(3)
    arguments = ["to-lora", str(path), "--rank", "3", "--lam", "0.5", "--out", str(tmp_path / "lora")]
    result = CliRunner().invoke(vector, arguments, catch_exceptions=False)
    assert "rank 3, λ 0.5, keeps 100.00% of ‖v‖²" in result.output and "left out: embeddings, 0.0000%" in result.output
    arguments = ["to-lora", str(path), "--energy", "0.5", "--out", str(tmp_path / "small"), "--json"]
    document = json.loads(CliRunner().invoke(vector, arguments, catch_exceptions=False).output)
    assert document["energy"] >= 0.5 and document["rank"] < 3 and document["skill"] == "math"
