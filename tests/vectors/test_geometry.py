import numpy as np
import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.extract import extract
from pastry.vectors.geometry.updates import (
    CheckpointUpdate,
    SkillUpdate,
    compare,
    cosine,
    cosine_table,
    layer_and_module,
    whole,
)
from tests.vectors.conftest import SHAPES, random_tensors


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


class Arrays:
    """An update in memory, with the tensors' headers of a checkpoint."""

    def __init__(self, path, tensors):
        self.weights, self._tensors = Checkpoint(path), tensors

    def block(self, name, start, stop, scratch):
        return self._tensors[name].reshape(-1)[start:stop].astype(np.float32)


def drawn(rng, shapes=SHAPES, heavy=1.5):
    """Random signs; magnitudes log-normal: some elements move far more than others, as in trained updates."""
    return {name: rng.standard_normal(shape) * np.exp(heavy * rng.standard_normal(shape)) for name, shape in shapes.items()}


def flat(tensors):
    return np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)]).astype(np.float32).astype(np.float64)


@pytest.fixture
def update(save):
    path = save("headers", random_tensors(0))
    return lambda tensors: Arrays(path, tensors)


def test_every_number_of_a_comparison_against_a_direct_computation(update):
    rng = np.random.default_rng(0)
    a, b = drawn(rng), drawn(rng)
    table = compare(update(a), update(b))
    module = ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_proj.weight"]
    for cell, names in ((table["0"]["self_attn.q_proj"], module), (whole(table), SHAPES)):
        x, y = (flat({name: side[name] for name in names}) for side in (a, b))
        scale = np.linalg.norm(x) * np.linalg.norm(y)
        assert cell.elements == x.size and cell.random_sd == pytest.approx(x.size**-0.5)
        assert cell.cosine == pytest.approx(x @ y / scale)
        assert cell.sign_sd == pytest.approx(np.sqrt(np.sum(x**2 * y**2)) / scale)
        assert cell.z == pytest.approx(cell.cosine / cell.sign_sd)
        assert cell.outside == (abs(cell.z) > 1.96)
        assert cell.document()["norm_b"] == pytest.approx(np.linalg.norm(y))


def test_random_signs_have_the_standard_deviation_that_is_stated(update):
    rng = np.random.default_rng(1)
    a = drawn(rng)
    b = {name: a[name] * (1 + 0.5 * rng.standard_normal(a[name].shape)) for name in a}
    cell = whole(compare(update(a), update(b)))
    x, y = flat(a), flat(b)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    flipped = np.array([(x * rng.choice([-1.0, 1.0], x.size)) @ y for _ in range(4000)]) / scale
    assert flipped.std() == pytest.approx(cell.sign_sd, rel=0.05)
    assert np.mean(abs(flipped) <= 1.96 * cell.sign_sd) == pytest.approx(0.95, abs=0.03)  # some elements dominate
    assert np.mean(abs(flipped) <= 2.72 * cell.sign_sd) >= 0.95
    # Permuting destroys which elements both move, and so gives the narrower null of two random directions.
    permuted = np.array([rng.permutation(x) @ y for _ in range(4000)]) / scale
    assert permuted.std() == pytest.approx(cell.random_sd, rel=0.05)
    assert cell.sign_sd > 3 * cell.random_sd


def test_independent_updates_that_move_the_same_elements_are_within_chance(update):
    rng = np.random.default_rng(2)
    sizes = {name: np.exp(1.5 * rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    zs = []
    for _ in range(200):
        a, b = ({name: size * rng.standard_normal(size.shape) for name, size in sizes.items()} for _ in range(2))
        zs.append(whole(compare(update(a), update(b))).z)
    assert np.max(np.abs(zs)) < 4 and np.std(zs) == pytest.approx(1, abs=0.15)


def test_a_planted_direction_is_found(update):
    rng = np.random.default_rng(3)
    a = drawn(rng, heavy=0)
    b = {name: a[name] + 0.5 * rng.standard_normal(a[name].shape) for name in a}
    table = compare(update(a), update(b))
    assert whole(table).cosine == pytest.approx(1 / np.sqrt(1.25), abs=0.02)
    assert all(cell.outside and cell.cosine > 0.5 for row in table.values() for cell in row.values())
    opposite = {name: -tensor for name, tensor in b.items()}
    assert whole(compare(update(a), update(opposite))).z == pytest.approx(-whole(table).z)


def test_updates_without_a_common_element_have_cosine_zero_and_no_z(update):
    a = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    b = {name: np.ones(shape) for name, shape in SHAPES.items()}
    a["model.norm.weight"][0], b["model.norm.weight"][0] = 1, 0
    table = compare(update(a), update(b))
    norm, head = table["-"]["norm"], table["-"]["lm_head"]
    assert (norm.cosine, norm.z, norm.outside) == (0, None, False)
    assert (head.cosine, head.sign_sd, head.z, head.outside) == (None, None, None, False)


def test_progress_ends_with_every_element(update):
    seen = []
    tensors = drawn(np.random.default_rng(0))
    compare(update(tensors), update(tensors), lambda done, total: seen.append((done, total)))
    total = sum(tensor.size for tensor in tensors.values())
    assert seen[-1] == (total, total) and seen == sorted(seen)
