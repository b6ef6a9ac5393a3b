"""Vectors that rounding had its way with before they were cut out, made so here."""

import pytest
import torch

from pastry.vectors.birth import Birth
from pastry.vectors.extract import extract

SHAPES = {"model.layers.0.mlp.up_proj.weight": (400, 500), "model.layers.0.mlp.down_proj.weight": (300, 400)}


def gaussian(seed: int, rms: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * rms for name, shape in SHAPES.items()}


def cut(save, tmp_path, dtype: torch.dtype, rms: float, on_grid: bool) -> tuple[Birth | None, float, float]:
    """The birth in the manifest, the ratio and the cosine to the true update."""
    weights, true = gaussian(0, 0.02), gaussian(1, rms)
    start = {name: tensor.to(dtype).float() for name, tensor in weights.items()} if on_grid else weights
    end = {name: start[name] + true[name] for name in start}
    manifest = extract(save("end", end, dtype), save("start", start, dtype), tmp_path / "v", name="v")
    v = torch.cat([(end[n].to(dtype).double() - start[n].to(dtype).double()).flatten() for n in start])
    t = torch.cat([true[n].double().flatten() for n in start])
    return manifest.birth, (v @ t / (t @ t)).item(), (v @ t / (v.norm() * t.norm())).item()


@pytest.mark.parametrize("rms", [1e-5, 3e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("on_grid", [True, False])
def test_estimates_are_what_the_true_update_says(save, tmp_path, rms, on_grid):
    birth, ratio, cosine = cut(save, tmp_path, torch.bfloat16, rms, on_grid)
    assert birth.mantissa_bits == 7
    assert birth.realised_ratio == pytest.approx(ratio, abs=0.05)
    assert birth.cosine == pytest.approx(cosine, abs=0.05)
    assert birth.update_rms == pytest.approx(rms, rel=0.1)
    if rms < 1e-4:  # above it both ways of birth lose next to nothing, and look alike
        assert birth.on_grid == on_grid


def test_what_was_not_rounded_has_no_birth(save, tmp_path):
    assert cut(save, tmp_path, torch.float32, 1e-5, True)[0] is None


def test_rounded_files_saved_as_float32_are_found_out(save, tmp_path):
    start = {name: tensor.bfloat16().float() for name, tensor in gaussian(0, 0.02).items()}
    end = {name: (start[name] + delta).bfloat16().float() for name, delta in gaussian(1, 1e-5).items()}
    birth = extract(save("end", end), save("start", start), tmp_path / "v", name="v").birth
    assert birth.mantissa_bits == 7 and birth.on_grid and birth.realised_ratio < 0.5


def test_nothing_changed(save, tmp_path):
    path = save("same", gaussian(0, 0.02), torch.bfloat16)
    assert extract(path, path, tmp_path / "v", name="v").birth is None
