import json

import pytest
import torch
import transformers

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint, checkpoint_fingerprint
from pastry.vectors.extract import extract
from pastry.vectors.inject import InjectReport, inject
from pastry.vectors.skill import Skill
from tests.vectors.conftest import edit_json, load, nearby, random_tensors, same_bits

WIDE = {"model.layers.0.mlp.up_proj.weight": (300, 700), "model.norm.weight": (300,)}


@pytest.fixture
def tiny_update(save, tmp_path):
    """A bfloat16 target and a skill of RMS 1e-5 on weights of σ 0.02: most of it lies below one bfloat16 step."""
    start, delta = random_tensors(0, shapes=WIDE), random_tensors(1, scale=1e-5, shapes=WIDE)
    end = {name: start[name] + delta[name] for name in start}
    extract(save("end", end), save("start", start), tmp_path / "v", name="tiny")
    return save("target", random_tensors(2, shapes=WIDE), torch.bfloat16), tmp_path / "v"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_own_start_plus_the_skill_is_the_end_bit_for_bit(save, tmp_path, dtype):
    start = random_tensors(0)
    start["model.norm.weight"][:4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    end = {name: tensor.to(dtype) for name, tensor in nearby(start, 1, 0.1).items()}
    start_path = save("start", start, dtype)
    manifest = extract(save("end", end, dtype), start_path, tmp_path / "v", name="v")
    report = inject(start_path, [(tmp_path / "v", 1.0)], tmp_path / "out")
    assert same_bits(load(tmp_path / "out"), end)
    assert not same_bits(load(start_path), end)
    assert manifest.not_restored == 0
    assert report.fingerprint == manifest.end == checkpoint_fingerprint(tmp_path / "out")
    assert report.target_fingerprint == manifest.start
    assert report.realised_ratio == pytest.approx(1.0, abs=1e-12) and report.rounding == "nearest"


def test_lambda_zero_gives_the_target_back(save, tmp_path):
    start = random_tensors(0)
    start["model.norm.weight"][0] = -0.0
    path = save("start", start)
    extract(save("end", random_tensors(1)), path, tmp_path / "v", name="v")
    report = inject(path, [(tmp_path / "v", 0.0)], tmp_path / "out")
    assert same_bits(load(tmp_path / "out"), start)
    assert report.realised_ratio is None and report.relative_error is None
    assert report.tensors["model.norm.weight"].realised_ratio is None


def test_weighted_sum_of_several_skills_with_dtype(save, tmp_path):
    starts = [random_tensors(seed) for seed in (0, 1)]
    for number, start in enumerate(starts):
        end, begin = save(f"end{number}", random_tensors(number + 5)), save(f"start{number}", start)
        extract(end, begin, tmp_path / f"v{number}", name=f"v{number}")
    target = random_tensors(9)
    path = save("target", target, torch.bfloat16, max_shard_bytes=1000)
    (path / "generation_config.json").write_text('{"eos_token_id": 2}')
    (path / "optimizer.pt").write_bytes(b"x")
    report = inject(path, [(tmp_path / "v0", 0.5), (tmp_path / "v1", -0.3)], tmp_path / "out", dtype="float32")
    v0, v1, out = load(tmp_path / "v0"), load(tmp_path / "v1"), load(tmp_path / "out")
    for name in target:
        assert torch.equal(out[name], target[name].bfloat16().float() + (v0[name] * 0.5 + v1[name] * -0.3))
    assert [(skill.name, skill.lam) for skill in report.skills] == [("v0", 0.5), ("v1", -0.3)]
    assert report.skills[1].fingerprint == Skill(tmp_path / "v1").manifest.fingerprint
    assert report.dtype == "float32" and report.relative_error < 1e-6
    assert InjectReport.model_validate_json((tmp_path / "out" / "inject.json").read_text()) == report
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "inject.json",
    }
    assert Checkpoint(tmp_path / "out").config == {**Checkpoint(path).config, "torch_dtype": "float32"}


def test_nearest_loses_a_tiny_update_and_auto_finds_out(tiny_update, tmp_path):
    target, v = tiny_update
    nearest = inject(target, [(v, 1.0)], tmp_path / "nearest", rounding="nearest")
    assert nearest.rounding == "nearest" and nearest.realised_ratio < 0.5
    auto = inject(target, [(v, 1.0)], tmp_path / "auto")
    assert auto.rounding == "stochastic" and auto.realised_ratio == pytest.approx(1.0, abs=0.05)
    assert auto.nearest_realised_ratio == pytest.approx(nearest.realised_ratio, rel=1e-12)
    explicit = inject(target, [(v, 1.0)], tmp_path / "explicit", rounding="stochastic")
    assert explicit.fingerprint == auto.fingerprint
    wide = inject(target, [(v, 1.0)], tmp_path / "wide", dtype="float32")
    assert wide.rounding == "nearest" and wide.realised_ratio == pytest.approx(1.0, abs=1e-4)
    # A skill large against the step needs no help.
    assert inject(target, [(v, 1000.0)], tmp_path / "large").rounding == "nearest"


def test_ratio_and_error_are_what_the_files_say(tiny_update, tmp_path):
    target, v = tiny_update
    report = inject(target, [(v, 0.7)], tmp_path / "out", rounding="stochastic")
    theta, skill, out = load(target), load(v), load(tmp_path / "out")
    moved = {name: (out[name].double() - theta[name].double()).flatten() for name in out}
    d = {name: (skill[name] * 0.7).double().flatten() for name in out}
    for name, measured in [*report.tensors.items(), (None, report)]:
        m, w = (moved[name], d[name]) if name else (torch.cat(list(moved.values())), torch.cat([d[n] for n in moved]))
        assert measured.realised_ratio == pytest.approx((m @ w / (w @ w)).item(), rel=1e-5)
        assert measured.relative_error == pytest.approx(((m - w).norm() / w.norm()).item(), rel=1e-5)


def test_stochastic_output_depends_on_inputs_and_seed_not_on_sharding(tiny_update, save, tmp_path):
    target, v = tiny_update
    resharded = save("resharded", load(target), torch.bfloat16, max_shard_bytes=500)
    outs = {
        name: inject(path, [(v, 1.0)], tmp_path / name, rounding="stochastic", seed=seed).fingerprint
        for name, path, seed in [("a", target, 0), ("b", target, 0), ("c", resharded, 0), ("d", target, 1)]
    }
    assert outs["a"] == outs["b"] == outs["c"] != outs["d"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "c" / "model.safetensors").read_bytes()


def test_refusals_leave_nothing(save, tmp_path):
    path = save("c", random_tensors(0))
    v = tmp_path / "v"
    extract(save("end", random_tensors(1)), path, v, name="v")
    half = save("half", random_tensors(0), torch.float16)
    big = {name: tensor * 0 + 60000 for name, tensor in random_tensors(0).items()}
    extract(save("big", big), path, tmp_path / "w", name="w")
    nan = random_tensors(0)
    nan["lm_head.weight"][0, 1] = float("nan")
    damaged = tmp_path / "damaged"
    extract(save("end2", random_tensors(1)), path, damaged, name="damaged")
    content = bytearray((damaged / "skill.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "skill.safetensors").write_bytes(content)
    other = save("other", random_tensors(0))
    edit_json(other / "config.json", vocab_size=33)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    nan_path, nan16_path = save("nan", nan), save("nan16", nan, torch.bfloat16)
    before = sorted(tmp_path.rglob("*"))
    cases = [
        (path, [(v, float("nan"))], {}, "λ of .*v is nan, wanted a finite number"),
        (path, [(v, float("inf"))], {}, "λ of .*v is inf"),
        (path, [(v, "0.5")], {}, "λ of .*v is '0.5'"),
        (path, [], {}, "no skill vector to inject"),
        (path, [(v, 1.0)], {"rounding": "up"}, "rounding 'up' is unknown"),
        (path, [(v, 1.0)], {"dtype": "float8"}, "dtype 'float8' is not supported"),
        (path, [(v, 1.0)], {"rounding": "stochastic"}, "stochastic is for bfloat16 outputs, this one is float32"),
        (path, [(v, 1.0), (path, 1.0)], {}, "no skill.json, so this is not a skill vector"),
        (other, [(v, 1.0)], {}, "different vocab size"),
        (nan_path, [(v, 1.0)], {}, r"nan: tensor lm_head.weight is nan at index \[0, 1\]"),
        (path, [(v, 1.0), (damaged, 1.0)], {}, "damaged: tensor .* has digest"),
        (half, [(tmp_path / "w", 2.0)], {}, "target .* in tensor lm_head.weight is inf .* does not fit float16"),
        (path, [(v, 1e300)], {}, r"λ of .*v is 1e\+300, wanted a finite number"),
        (path, [(tmp_path / "w", 3e38)], {}, "does not fit float32"),
    ]
    for target, skills, options, message in cases:
        with pytest.raises(PastryError, match=message):
            inject(target, skills, tmp_path / "out", **options)
        assert sorted(tmp_path.rglob("*")) == before, message
    with pytest.raises(PastryError, match="full already exists"):
        inject(nan16_path, [(v, 1.0)], tmp_path / "full")
    assert sorted(tmp_path.rglob("*")) == before


def test_output_loads_in_transformers(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    models = [transformers.LlamaForCausalLM(config).bfloat16() for _ in range(2)]
    for name, model in zip(("start", "end"), models, strict=True):
        model.save_pretrained(tmp_path / name)
    extract(tmp_path / "end", tmp_path / "start", tmp_path / "v", name="v")
    inject(tmp_path / "start", [(tmp_path / "v", 1.0)], tmp_path / "out", dtype="float32")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float32
    end = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "end", dtype="float32")
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, end(tokens).logits)
    assert "inject.json" in {file.name for file in (tmp_path / "out").iterdir()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
