"""The same training on one, two and three workers of two Ray nodes, plain and under ZeRO: the same curves and weights."""

import math
import os

import pytest
import torch

from tests.training.base import make_base
from tests.training.group import LAB, SEED, rl_job, run_group, sft_job
from tests.two_nodes import two_nodes
from tests.vectors.conftest import load

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4
"""Relative, of every logged loss and gradient norm; what is sampled must be equal."""
COMPARED = ("loss", "grad_norm", "reward", "completions/mean_length", "update/norm")
SHARDED = ("zero1", "zero2", "zero3")
TINY = {"lr": 1e-6, "steps": 2}
"""Adam's steps of 1e-6 are below bfloat16's for every weight above 2.6e-4."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Curves of every job by number of workers, and the directory of their models."""
    root = tmp_path_factory.mktemp("distribution")
    base = make_base(root / "base", LAB, SEED)

    def both(out, **settings):
        accumulated = settings.pop("accumulated", False)
        text, rl = ({"micro_rows": 2}, {"micro_completions": 4}) if accumulated else ({}, {})
        return {"sft": sft_job(out / "sft", base, **settings, **text), "rl": rl_job(out / "rl", base, **settings, **rl)}

    def named(workers, variants):
        return {
            f"{kind}/{name}": job
            for name, settings in variants.items()
            for kind, job in both(root / str(workers) / "out" / name, **settings).items()
        }

    lora = {"lora": {"rank": 4, "alpha": 8}}
    variants = {
        1: {"ddp": {}, "ddp accumulated": {"accumulated": True}, "tiny": TINY, "ddp lora": lora},
        2: {"ddp": {}, "ddp accumulated": {"accumulated": True}}
        | {"bf16 tiny": TINY | {"precision": "bf16"}}
        | {parallelism: {"parallelism": parallelism} for parallelism in SHARDED}
        | {"zero3 accumulated": {"parallelism": "zero3", "accumulated": True}, "zero3 lora": {"parallelism": "zero3"} | lora}
        | {f"{p} bf16 tiny": TINY | {"parallelism": p, "precision": "bf16"} for p in SHARDED},
        3: {"ddp": {}} | {parallelism: {"parallelism": parallelism} for parallelism in SHARDED},
    }
    with two_nodes(cpus=2) as cluster:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs, "OMP_NUM_THREADS": "1"}
        curves = {n: run_group(root / str(n), named(n, made), n, environment) for n, made in variants.items()}
    return root, base, curves


def agree(curve, other):
    assert len(curve) == len(other) and curve
    for a, b in zip(curve, other, strict=True):
        for key in COMPARED:
            if key in a:
                assert math.isclose(a[key], b[key], rel_tol=TOLERANCE, abs_tol=1e-6), (key, a["step"], a[key], b[key])


def vector(root, workers, name, kind, base):
    model, start = load(root / str(workers) / "out" / name / kind / "model"), load(base)
    assert model.keys() == start.keys()
    return torch.cat([(model[tensor] - start[tensor]).flatten() for tensor in start])


def test_two_and_three_workers_are_on_both_nodes(runs):
    assert len(runs[2][2]["nodes"]) == len(runs[2][3]["nodes"]) == 2


@pytest.mark.parametrize("kind", ["sft", "rl"])
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("parallelism", ["ddp", *SHARDED])
def test_the_global_batch_alone_decides_the_curve(runs, kind, workers, parallelism):
    agree(runs[2][workers][f"{kind}/{parallelism}"], runs[2][1][f"{kind}/ddp"])


@pytest.mark.parametrize("kind", ["sft", "rl"])
@pytest.mark.parametrize(("workers", "name"), [(1, "ddp"), (2, "ddp"), (2, "zero3")])
def test_accumulation_changes_nothing(runs, kind, workers, name):
    agree(runs[2][workers][f"{kind}/{name} accumulated"], runs[2][1][f"{kind}/ddp"])


def test_rl_learns_from_rewards_that_differ(runs):
    for curves in runs[2].values():
        assert any(point["reward"] > 0 for point in curves["rl/ddp"]) and any(
            point["grad_norm"] > 0 for point in curves["rl/ddp"]
        )


@pytest.mark.parametrize("parallelism", SHARDED)
def test_the_sharded_model_is_the_whole_one(runs, parallelism):
    root, base, _ = runs
    for kind in ("sft", "rl"):
        whole, sharded = (vector(root, n, name, kind, base) for n, name in ((1, "ddp"), (2, parallelism)))
        assert float((whole - sharded).norm() / whole.norm()) < 1e-2
        assert load(root / "2" / "out" / parallelism / kind / "model").keys() == load(base).keys()


@pytest.mark.parametrize("name", ["bf16 tiny", *(f"{parallelism} bf16 tiny" for parallelism in SHARDED)])
@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_updates_below_a_bfloat16_step_are_kept(runs, kind, name):
    root, base, _ = runs
    exact, kept = vector(root, 1, "tiny", kind, base), vector(root, 2, name, kind, base)
    assert math.isclose(kept.norm(), exact.norm(), rel_tol=0.02)
    # Adam's first steps are the gradient's signs: bfloat16's noise turns those of small gradients, more of them in RL.
    assert cosine(exact, kept) > {"sft": 0.97, "rl": 0.6}[kind]
    # A bfloat16 file of the end would have kept nearly nothing of it.
    start, model = load(base), load(root / "2" / "out" / name / kind / "model")
    filed = torch.cat([(model[t].bfloat16() != start[t].bfloat16()).flatten() for t in start]).float().mean()
    assert filed < 0.05 < (kept != 0).float().mean()


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_however_sharded_the_vector_is_the_same_in_bfloat16(runs, kind):
    root, base, _ = runs
    vectors = [vector(root, 2, f"{parallelism} bf16 tiny", kind, base) for parallelism in SHARDED]
    assert all(cosine(vectors[0], other) > 0.999 for other in vectors[1:])


@pytest.mark.parametrize("name", ["ddp", *SHARDED])
def test_rl_keeps_its_start_bit_for_bit(runs, name):
    root, base, _ = runs
    for settings in ("", " bf16 tiny") if name != "ddp" else ("",):
        kept, given = load(root / "2" / "out" / (name + settings) / "rl" / "work" / "start"), load(base)
        assert all(torch.equal(kept[tensor], given[tensor]) for tensor in given)


def test_an_adapter_is_the_same_sharded(runs):
    root, _, curves = runs
    for kind in ("sft", "rl"):
        agree(curves[2][f"{kind}/zero3 lora"], curves[1][f"{kind}/ddp lora"])
        whole, sharded = (load_adapter(root / n / kind / "adapter") for n in ("1/out/ddp lora", "2/out/zero3 lora"))
        assert whole.keys() == sharded.keys()
        assert all(torch.allclose(whole[t], sharded[t], rtol=1e-2, atol=1e-5) for t in whole)


def load_adapter(path):
    from safetensors.torch import load_file

    assert (path / "adapter_config.json").exists() and os.listdir(path)
    return load_file(path / "adapter_model.safetensors")
