import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry.vectors.modules import ModuleLambdas, lambda_values, layer_and_module, parse_lambda, per_tensor
from tests.vectors.conftest import load, random_tensors

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.2.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def lambdas(text: str) -> list[float]:
    return list(per_tensor(parse_lambda(text, "here"), NAMES, "λ").values())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.8", [0.8] * 8),
        ("all=-1", [-1] * 8),
        ("attention=1,mlp=2,norms=3,embeddings=4", [4, 1, 3, 3, 2, 2, 3, 4]),
        ("mlp[2-5]=1,mlp=2,all=0", [0, 0, 0, 0, 2, 1, 0, 0]),
        ("embeddings=0,norms=0,all=1~2", [0, 1, 0, 0, 1.5, 2, 0, 0]),
        ("mlp[1-3]=1~3,all=0", [0, 0, 0, 0, 1, 2, 0, 0]),
        (r"/q_proj|lm_head/=5,/layers\.[12],?/[1-1]=6,all=0", [0, 5, 0, 0, 6, 0, 0, 5]),
    ],
)
def test_rules_give_each_tensor_its_lambda(text, wanted):
    assert lambdas(text) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "λ is '', wanted a finite number"),
        ("attention=", "cannot read the rule 'attention='"),
        ("heads=1", "cannot read the rule 'heads=1'; wanted GROUP=λ"),
        ("attention=1,", "λ of attention is '1,'"),
        ("attention=1~2~3,all=0", "cannot read the gradient"),
        ("mlp[3-1]=1,all=0", "names layers 3 to 1; wanted the lower one first"),
        ("mlp[a]=1,all=0", "cannot read the rule"),
        ("/(/=1", "is not a regular expression"),
        ("attention=nan,all=0", "λ of attention is 'nan'"),
        ("attention=1", "no rule matches tensor model.embed_tokens.weight; end with all=0"),
        ("all=1~2", "tensor model.embed_tokens.weight is in no layer, wanted a number for it before the gradient"),
        ("all=1e39", r"is 1e\+39, wanted a finite number"),
    ],
)
def test_refusals_name_the_rule(text, message):
    with pytest.raises(PastryError, match=message):
        lambdas(text)


def test_values_and_text():
    parsed = parse_lambda("attention=1,all=0.2~0.4", "here")
    assert isinstance(parsed, ModuleLambdas) and parsed.text == "attention=1,all=0.2~0.4"
    assert lambda_values(parsed) == [1, 1, 0.2, 0.4] and lambda_values(0.5) == [0.5]
    assert layer_and_module("model.layers.3.self_attn.q_proj.bias") == ("3", "self_attn.q_proj")
    assert layer_and_module("model.norm.weight") == ("-", "norm")


def test_inject_by_module_group(save, tmp_path):
    start, end = random_tensors(0), random_tensors(1)
    path = save("start", start)
    extract(save("end", end), path, tmp_path / "v", name="v")
    rules = parse_lambda("attention=0.5,embeddings=2,all=0", "here")
    report = inject(path, [(tmp_path / "v", rules)], tmp_path / "out")
    assert report.skills[0].lam == rules.text
    out, v = load(tmp_path / "out"), load(tmp_path / "v")
    for name in start:
        scale = 0.5 if "attn" in name else 2 if "embed" in name or "lm_head" in name else 0
        assert torch.equal(out[name], start[name] + v[name] * scale), name
    assert report.tensors["model.norm.weight"].realised_ratio is None
