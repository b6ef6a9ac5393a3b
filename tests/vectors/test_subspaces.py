import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from pastry.errors import PastryError
from pastry.vectors.geometry import subspaces
from pastry.vectors.geometry.subspaces import effective_rank, leading_subspaces, overlap, singular_values, stable_rank
from pastry.vectors.geometry.updates import CheckpointUpdate
from tests.vectors.conftest import random_tensors

Q_PROJ, DOWN_PROJ = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"


def low_rank(rng, m, n, rank, noise=0.0):
    planted = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    return (1e-5 * (planted + noise * rng.standard_normal((m, n)))).astype(np.float32)


@pytest.fixture(params=["svd", "gram"])
def route(request, monkeypatch):
    if request.param == "gram":
        monkeypatch.setattr(subspaces, "EXACT", 0)
    monkeypatch.setattr(subspaces, "BLOCK", 64)  # several slices
    return request.param


@pytest.mark.parametrize("shape", [(30, 17), (17, 30), (20, 20), (1, 9), (9, 1)])
def test_singular_values_and_what_follows_against_torch(route, shape):
    matrix = low_rank(np.random.default_rng(0), *shape, rank=min(shape), noise=0.1)
    wanted = torch.linalg.svdvals(torch.from_numpy(matrix).double()).numpy()
    sigma = singular_values(matrix)
    np.testing.assert_allclose(sigma, wanted, rtol=0, atol=1e-7 * wanted[0])
    p = wanted / wanted.sum()
    assert effective_rank(sigma) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert stable_rank(sigma) == pytest.approx((np.linalg.norm(matrix) / np.linalg.norm(matrix, 2)) ** 2, rel=1e-5)


def test_ranks_of_known_matrices(route):
    rng = np.random.default_rng(1)
    one = singular_values(np.outer(rng.standard_normal(40), rng.standard_normal(25)).astype(np.float32))
    assert effective_rank(one) == pytest.approx(1, abs=1e-4) and stable_rank(one) == pytest.approx(1, abs=1e-6)
    turned = np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    for rank in (effective_rank, stable_rank):
        assert rank(singular_values(turned)) == pytest.approx(16, rel=1e-5)
        assert rank(singular_values(np.zeros((4, 6), np.float32))) is None
    two = np.diag(np.array([3, 1, 0, 0], np.float32))
    assert effective_rank(singular_values(two)) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rel=1e-5)
    assert stable_rank(singular_values(two)) == pytest.approx(10 / 9)


@pytest.mark.parametrize("shape", [(30, 17), (17, 30)])
def test_leading_subspaces_are_those_of_the_svd(route, shape):
    matrix = low_rank(np.random.default_rng(2), *shape, rank=3, noise=0.05)
    u, _, vt = torch.linalg.svd(torch.from_numpy(matrix).double(), full_matrices=False)
    left, right = leading_subspaces(matrix, 3)
    for found, wanted in ((left, u[:, :3].numpy()), (right, vt[:3].T.numpy())):
        np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-10)
        np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-8)


def test_overlap_is_that_of_scipys_angles():
    rng = np.random.default_rng(3)
    a, b = (np.linalg.qr(rng.standard_normal((20, rank)))[0] for rank in (4, 6))
    assert overlap(a, b) == pytest.approx(np.mean(np.cos(subspace_angles(a, b)) ** 2))
    assert overlap(a, a) == pytest.approx(1) and overlap(a[:, :2], a[:, 2:]) == pytest.approx(0, abs=1e-12)


def test_random_subspaces_overlap_by_rank_over_dimension():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(300):
        a, b = (leading_subspaces(rng.standard_normal((24, 12)).astype(np.float32), r) for r in (3, 5))
        found.append([overlap(*pair) for pair in zip(a, b, strict=True)])
    assert np.mean(found, axis=0) == pytest.approx([5 / 24, 5 / 12], abs=0.02)


def test_a_matrix_counts_with_the_rank_it_has():
    matrix = low_rank(np.random.default_rng(5), 30, 20, rank=2)
    left, right = leading_subspaces(matrix, 8)
    assert left.shape == (30, 2) and right.shape == (20, 2)
    nothing = leading_subspaces(np.zeros((30, 20), np.float32), 8)
    assert [side.shape for side in nothing] == [(30, 0), (20, 0)]
    assert overlap(left, nothing[0]) is None


def test_tables_of_a_planted_update(save):
    rng = np.random.default_rng(6)
    base = random_tensors(0)
    shared = torch.from_numpy(low_rank(rng, 16, 48, rank=2)) * 100
    ends = []
    for seed in (1, 2):
        noise = random_tensors(seed, scale=1e-5)
        ends.append({name: base[name] + noise[name] for name in base})
        ends[-1][DOWN_PROJ] = ends[-1][DOWN_PROJ] + shared
    paths = [save(name, tensors) for name, tensors in zip(("base", "a", "b"), (base, *ends), strict=True)]
    a, b = (CheckpointUpdate(path, paths[0]) for path in paths[1:])
    seen = []
    table = subspaces.overlaps(a, b, 2, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert {module for row in table.values() for module in row} == {
        "self_attn.q_proj", "mlp.down_proj", "embed_tokens", "lm_head"
    }  # fmt: skip
    planted, noise = table["1"]["mlp.down_proj"], table["1"]["self_attn.q_proj"]
    assert planted["columns"] > 0.95 and planted["rows"] > 0.95
    assert (planted["columns_random"], planted["rows_random"]) == (2 / 16, 2 / 48)
    assert noise["columns"] < 0.6

    ranks = subspaces.ranks(a)
    sigma = torch.linalg.svdvals((ends[0][DOWN_PROJ] - base[DOWN_PROJ]).double())
    assert ranks["1"]["mlp.down_proj"]["stable_rank"] == pytest.approx((sigma.square().sum() / sigma[0] ** 2).item(), rel=1e-6)
    assert ranks["1"]["self_attn.q_proj"]["effective_rank"] > 8

    unmoved = subspaces.overlaps(a, CheckpointUpdate(paths[0], paths[0]), 2)["1"]["self_attn.q_proj"]
    assert unmoved["columns"] is None and subspaces.ranks(CheckpointUpdate(paths[0], paths[0]))["1"]["mlp.down_proj"] == {
        "effective_rank": None,
        "stable_rank": None,
    }
    with pytest.raises(PastryError, match="--angles is 0"):
        subspaces.overlaps(a, b, 0)
