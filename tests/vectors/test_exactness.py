"""Extract and inject against direct computations in torch, on whatever hypothesis thinks of."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry.vectors.skill import Skill
from tests.vectors.conftest import load, same_bits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-126), 2.0**-24, 8000.0, -1e-8, 3.0**-9]
SHAPES = st.sampled_from([(), (0,), (1,), (7,), (3, 5), (2, 3, 4)])
NAMES = st.sampled_from(["float32", "bfloat16", "float16"])
LAMBDAS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0]), st.floats(-4, 4, allow_nan=False, width=32))
few = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def tensors(draw, scale=1.0):
    """A dict of one to three tensors of one dtype: Gaussian numbers with special values strewn in."""
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    found = {}
    for i, shape in enumerate(draw(st.lists(SHAPES, min_size=1, max_size=3))):
        tensor = (torch.randn(shape, generator=generator) * scale).reshape(-1)
        for place in range(min(tensor.numel(), draw(st.integers(0, 3)))):
            tensor[place] = draw(st.sampled_from(SPECIAL))
        found[f"t{i}"] = tensor.reshape(shape).to(dtype)
    return found


def write(directory: Path, weights: dict[str, torch.Tensor]) -> Path:
    directory.mkdir()
    save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return directory


def like(weights, seed, relative):
    """Each element moved by up to ±`relative` of itself."""
    generator = torch.Generator().manual_seed(seed)
    factors = {name: 1 + relative * (2 * torch.rand(t.shape, generator=generator) - 1) for name, t in weights.items()}
    return {name: (t.float() * factors[name]).clamp(-6e4, 6e4).to(t.dtype) for name, t in weights.items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.int32 if tensor.itemsize == 4 else torch.int16)


def add(theta, d):
    """θ + d in float32, in which a zero d leaves θ alone."""
    return torch.where(d == 0, theta, theta + d)


@few
@given(tensors(), st.integers(0, 99), st.sampled_from([0.0, 0.01, 0.3, 3.0]), NAMES)
def test_extract_subtracts_in_float32_and_says_what_it_could_not_hold(start, seed, relative, dtype):
    end = like(start, seed, relative)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder, name), weights) for name, weights in (("end", end), ("start", start))]
        manifest = extract(*paths, Path(folder, "v"), name="v", dtype=dtype)
        found = load(Path(folder, "v"))
    missed = 0
    for name in start:
        v = (end[name].float() - start[name].float()).to(getattr(torch, dtype))
        assert same_bits({name: found[name]}, {name: v})
        again = add(start[name].float(), v.float()).to(end[name].dtype)
        missed += int((bits(again) != bits(end[name])).sum())
        assert manifest.tensors[name].norm == pytest.approx(v.double().norm().item(), rel=1e-12)
        assert manifest.tensors[name].zeros == int((v == 0).sum())
    assert manifest.not_restored == missed


@few
@given(tensors(scale=0.02), st.integers(0, 99))
def test_own_start_plus_the_skill_is_the_end_where_the_difference_is_held(start, seed):
    # Within a factor of two of each other, two numbers have an exact difference (Sterbenz); zeros keep their sign.
    end = like(start, seed, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder, name), weights) for name, weights in (("end", end), ("start", start))]
        manifest = extract(*paths, Path(folder, "v"), name="v")
        assert manifest.not_restored == 0
        report = inject(paths[1], [(Path(folder, "v"), 1.0)], Path(folder, "out"))
        assert same_bits(load(Path(folder, "out")), end)
    assert report.fingerprint == manifest.end


@few
@given(tensors(scale=0.02), st.data())
def test_inject_adds_in_float32_and_rounds_once(target, data):
    skills = []
    dtype = data.draw(NAMES)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "target"), target)
        total = {name: torch.zeros(t.shape) for name, t in target.items()}
        for i in range(data.draw(st.integers(1, 3))):
            ends = [write(Path(folder, f"{side}{i}"), like(target, 2 * i + k, 0.5)) for k, side in enumerate(("end", "start"))]
            extract(*ends, Path(folder, f"v{i}"), name="v", dtype=data.draw(st.sampled_from(["float32", "bfloat16"])))
            lam = data.draw(LAMBDAS)
            skills.append((Path(folder, f"v{i}"), lam))
            v = Skill(skills[-1][0])
            for name in target:
                total[name] = total[name] + v.read(name).float() * torch.tensor(lam, dtype=torch.float32)
        report = inject(path, skills, Path(folder, "out"), dtype=dtype, rounding="nearest")
        found = load(Path(folder, "out"))
    moved, wanted = [], []
    for name, theta in target.items():
        assert same_bits({name: found[name]}, {name: add(theta.float(), total[name]).to(getattr(torch, dtype))})
        moved.append((found[name].double() - theta.double()).reshape(-1))
        wanted.append(total[name].double().reshape(-1))
    moved, wanted = torch.cat(moved), torch.cat(wanted)
    if (wanted @ wanted).item() == 0:
        assert report.realised_ratio is None
    else:
        assert report.realised_ratio == pytest.approx(((moved @ wanted) / (wanted @ wanted)).item(), rel=1e-9, abs=1e-12)
        error = ((moved - wanted).norm() / wanted.norm()).item()
        assert report.relative_error == pytest.approx(error, rel=1e-6, abs=1e-9)


def test_special_values_survive():
    values = torch.tensor(SPECIAL)
    assert np.array_equal(add(values, torch.zeros(len(SPECIAL))).numpy().view("u4"), values.numpy().view("u4"))
