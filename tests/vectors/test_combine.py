"""Combined skill vectors on disk: the formulas over whole tensors, the manifest, and what is refused."""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pastry.errors import PastryError
from pastry.vectors.algebra import merging
from pastry.vectors.algebra.combine import combine
from pastry.vectors.extract import extract
from pastry.vectors.geometry.updates import CheckpointUpdate, SkillUpdate
from pastry.vectors.inject import inject
from pastry.vectors.modules import parse_lambda
from pastry.vectors.random_vector import random_like
from pastry.vectors.rounding import BLOCK, derive_key
from pastry.vectors.skill import Skill
from tests.test_cli import pastry  # noqa: F401
from tests.vectors.conftest import edit_json, load, nearby, random_tensors, same_bits

START = random_tensors(0)


@pytest.fixture
def skills(save, tmp_path):
    """Paths of three skill vectors of one architecture, in float32, bfloat16 and float32."""
    start, paths = save("start", START), []
    for i, dtype in enumerate(("float32", "bfloat16", "float32"), start=1):
        end = save(f"end{i}", nearby(START, i, 0.1))
        extract(end, start, tmp_path / f"v{i}", name=f"v{i}", base=start, dtype=dtype)
        paths.append(tmp_path / f"v{i}")
    return paths


@pytest.fixture
def sft(save, tmp_path):
    """The target's SFT checkpoint; its base is the checkpoint `start`."""
    return save("sft", nearby(START, 9, 0.2))


def evenly(paths):
    return [(path, 1.0) for path in paths]


def tensors_of(path) -> dict[str, np.ndarray]:
    skill = Skill(path)
    return {name: skill.read(name).float().numpy() for name in sorted(skill.tensors)}


def flat(tensors) -> np.ndarray:
    return np.concatenate([t.ravel().astype(np.float64) for _, t in sorted(tensors.items())])


def update(sft) -> dict[str, np.ndarray]:
    start, end = load(sft.parent / "start"), load(sft)
    return {name: (end[name] - start[name]).numpy() for name in end}


def directly(method, skills, weights, settings):
    """The formula on whole tensors in memory."""
    sources, out = [tensors_of(path) for path in skills], {}
    for name in sources[0]:
        vectors = [source[name] for source in sources]
        needs = {"weights": weights, "first": 0, **settings}
        if method == "ties":
            k = max(1, int(settings["density"] * vectors[0].size + 0.5))
            needs["thresholds"] = [np.sort(np.abs(v).ravel())[-k:][:1] for v in vectors]
        needs["keys"] = [derive_key(settings.get("seed", 0), f"{name}, source {i}") for i in range(len(vectors))]
        wanted = {key: needs[key] for key in merging.parameters(method)}
        out[name] = merging.METHODS[method](vectors, **wanted)
    return out


@pytest.mark.parametrize(
    ("method", "settings", "weights"),
    [
        ("sum", {}, [0.5, -1.0, 2.0]),
        ("mean", {}, [1.0] * 3),
        ("consensus", {"agree": 3}, [1.0] * 3),
        ("consensus", {"agree": 2}, [1.0] * 3),
        ("complement", {"agree": 3, "of": "mean"}, [1.0] * 3),
        ("complement", {"agree": 2, "of": "first"}, [1.0] * 3),
        ("ties", {"density": 0.3}, [1.0] * 3),
        ("dare", {"drop": 0.6, "seed": 5}, [0.25, 1.0, 1.0]),
    ],
)
def test_every_method_gives_its_formula_on_whole_tensors(skills, tmp_path, method, settings, weights):
    terms = list(zip(skills, weights, strict=True))
    manifest = combine(terms, tmp_path / "c", name="c", method=method, **settings)
    wanted = directly(method, skills, weights, settings)
    found = tensors_of(tmp_path / "c")
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert manifest.method == method and manifest.settings == settings
    assert manifest.norm == pytest.approx(np.linalg.norm(flat(wanted)))
    assert manifest.non_zero_share == pytest.approx(np.count_nonzero(flat(wanted)) / flat(wanted).size)


def test_the_result_is_an_ordinary_skill_vector(skills, tmp_path):
    manifest = combine(evenly(skills), tmp_path / "c", name="shared", method="consensus")
    skill = Skill(tmp_path / "c")
    skill.verify()
    assert skill.manifest == manifest
    originals = [Skill(path).manifest for path in skills]
    assert [(s.name, s.fingerprint, s.weight) for s in manifest.sources] == [(o.name, o.fingerprint, 1.0) for o in originals]
    assert manifest.base == originals[0].base and manifest.architecture == originals[0].architecture
    assert manifest.source_dtypes == ["bfloat16", "float32"] and manifest.stored_dtype == "float32"
    assert manifest.end is None and manifest.start is None
    report = inject(tmp_path / "start", [(tmp_path / "c", 0.5)], tmp_path / "injected")
    assert report.realised_ratio == pytest.approx(1, abs=1e-4)
    random_like(tmp_path / "c", tmp_path / "random", seed=0)
    again = combine([(tmp_path / "c", 1.0), (tmp_path / "random", 1.0)], tmp_path / "again", name="again", method="mean")
    assert [source.name for source in again.sources] == ["shared", "shared-random-0"]


def test_stored_in_bfloat16_it_is_the_float32_result_rounded_once(skills, tmp_path):
    combine(evenly(skills), tmp_path / "wide", name="c", method="mean")
    manifest = combine(evenly(skills), tmp_path / "narrow", name="c", method="mean", dtype="bfloat16")
    wide, narrow = load(tmp_path / "wide"), load(tmp_path / "narrow")
    assert same_bits(narrow, {name: tensor.bfloat16() for name, tensor in wide.items()})
    assert manifest.stored_dtype == "bfloat16"


@pytest.mark.parametrize("per", ["tensor", "whole"])
def test_orthogonal_to_an_update(skills, sft, tmp_path, per):
    open_update = partial(CheckpointUpdate, sft, tmp_path / "start")
    settings = {"orthogonal_to": open_update, "orthogonal_per": per}
    manifest = combine(evenly(skills), tmp_path / "c", name="c", method="mean", **settings)
    found, u, mean = tensors_of(tmp_path / "c"), update(sft), directly("mean", skills, None, {})

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    assert abs(cosine(flat(found), flat(u))) < 1e-7 < 1e-3 < abs(cosine(flat(mean), flat(u)))
    for name in u:
        v, along = flat({name: mean[name]}), flat({name: u[name]})
        if per == "tensor":
            assert abs(cosine(flat({name: found[name]}), along)) < 1e-6
        c = v @ along / (along @ along) if per == "tensor" else flat(mean) @ flat(u) / (flat(u) @ flat(u))
        np.testing.assert_allclose(found[name].ravel(), v - c * along, rtol=1e-6, atol=1e-12)
    # The update is named by what it would be as a skill vector.
    assert manifest.settings["orthogonal_per"] == per
    as_skill = extract(sft, tmp_path / "start", tmp_path / "u", name="u")
    assert manifest.settings["orthogonal_to"] == as_skill.fingerprint
    settings["orthogonal_to"] = partial(SkillUpdate, tmp_path / "u")
    assert combine(evenly(skills), tmp_path / "again", name="c", method="mean", **settings) == manifest


def test_where_the_update_is_zero_in_a_tensor_nothing_is_taken_out(skills, save, tmp_path):
    moved = {**START, "model.norm.weight": START["model.norm.weight"] * 1.5}
    open_update = partial(CheckpointUpdate, save("moved", moved), tmp_path / "start")
    combine(evenly(skills), tmp_path / "c", name="c", method="mean", orthogonal_to=open_update)
    combine(evenly(skills), tmp_path / "mean", name="c", method="mean")
    found, mean = load(tmp_path / "c"), load(tmp_path / "mean")
    assert [name for name in sorted(found) if not torch.equal(found[name], mean[name])] == ["model.norm.weight"]


@pytest.mark.parametrize("per", [None, "tensor", "whole"])
@pytest.mark.parametrize(("method", "settings"), [("consensus", {"agree": 3}), ("ties", {"density": 0.2})])
def test_the_norm_is_the_mean_of_the_sources_norms(skills, sft, tmp_path, method, settings, per):
    if per:
        settings = settings | {"orthogonal_to": partial(CheckpointUpdate, sft, tmp_path / "start"), "orthogonal_per": per}
    plain = combine(evenly(skills), tmp_path / "plain", name="c", method=method, **settings)
    matched = combine(evenly(skills), tmp_path / "matched", name="c", method=method, match_norm=True, **settings)
    wanted = np.mean([Skill(path).manifest.norm for path in skills])
    assert matched.norm == pytest.approx(wanted, rel=1e-7) and plain.norm != pytest.approx(wanted, rel=1e-2)
    assert matched.settings["match_norm"] is True
    found, before = (flat(tensors_of(tmp_path / which)) for which in ("matched", "plain"))
    np.testing.assert_allclose(found, before * wanted / plain.norm, rtol=1e-6)


@pytest.fixture(scope="module")
def spread():
    """`map` over two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool.map


@pytest.mark.parametrize("per", ["tensor", "whole"])
@pytest.mark.parametrize(("method", "settings"), [("ties", {"density": 0.3}), ("dare", {"drop": 0.5})])
def test_the_same_bytes_whatever_the_shards_and_processes(skills, sft, spread, tmp_path, method, settings, per):
    more = {"orthogonal_to": partial(CheckpointUpdate, sft, tmp_path / "start"), "orthogonal_per": per, "match_norm": True}
    run = partial(combine, evenly(skills), name="c", method=method, **more, **settings)
    one = run(out=tmp_path / "one")
    many = run(out=tmp_path / "many", max_shard_bytes=2000)
    shared = run(out=tmp_path / "shared", max_shard_bytes=3000, spread=spread)
    assert one == many == shared
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert same_bits(load(tmp_path / "one"), load(tmp_path / "many"))
    assert same_bits(load(tmp_path / "one"), load(tmp_path / "shared"))


def test_tensors_of_several_blocks_and_of_none(save, tmp_path):
    shapes, paths = {"a": (BLOCK + 77,), "b": (3,), "none": (0,)}, []
    start = random_tensors(0, shapes=shapes)
    save("start", start)
    for i in (1, 2):
        extract(save(f"end{i}", nearby(start, i, 0.1)), tmp_path / "start", tmp_path / f"v{i}", name="v")
        paths.append(tmp_path / f"v{i}")
    for method, settings in [("ties", {"density": 0.1}), ("dare", {"drop": 0.5, "seed": 1})]:
        combine(evenly(paths), tmp_path / method, name="c", method=method, **settings)
        wanted = directly(method, paths, [1.0, 1.0], settings)
        for name, v in tensors_of(tmp_path / method).items():
            np.testing.assert_array_equal(v, wanted[name])


def files_of(path: Path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("more", [{}, {"match_norm": True}])
def test_a_damaged_source_is_refused_naming_the_tensor(skills, tmp_path, more):
    tensors = load(skills[1])
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] += 1
    save_file(tensors, skills[1] / "skill.safetensors", {"format": "pt"})
    before = files_of(tmp_path)
    with pytest.raises(PastryError, match=r"v2: tensor model.layers.1.mlp.down_proj.weight has digest .* damaged"):
        combine(evenly(skills), tmp_path / "c", name="c", method="mean", **more)
    assert files_of(tmp_path) == before


def test_a_damaged_update_is_refused(skills, tmp_path):
    tensors = load(skills[2])
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, skills[2] / "skill.safetensors", {"format": "pt"})
    with pytest.raises(PastryError, match=r"v3: tensor model.norm.weight has digest"):
        combine(evenly(skills[:2]), tmp_path / "c", name="c", method="mean", orthogonal_to=partial(SkillUpdate, skills[2]))


def test_sources_that_do_not_go_together(skills, save, tmp_path):
    other = save("other", random_tensors(5, shapes={"model.norm.weight": (16,)}))
    extract(other, other, tmp_path / "small", name="small")
    with pytest.raises(PastryError, match=r"tensor lm_head.weight is in .*v1 but not in .*small"):
        combine(evenly([skills[0], tmp_path / "small"]), tmp_path / "c", name="c", method="mean")
    edit_json(skills[2] / "skill.json", base="blake3:other")
    with pytest.raises(PastryError, match=r"different bases: .*v1 has blake3:\w{64}, .*v3 has blake3:other"):
        combine(evenly(skills), tmp_path / "c", name="c", method="mean")
    # One that does not say where it comes from is no contradiction, but then the result cannot say it either.
    edit_json(skills[2] / "skill.json", base=None)
    assert combine(evenly(skills), tmp_path / "c", name="c", method="mean").base is None


def test_what_one_source_does_not_state_another_may(skills, tmp_path):
    stated = Skill(skills[1]).manifest.architecture
    silent = {**stated.model_dump(), "chat_template_digest": None}
    edit_json(skills[0] / "skill.json", architecture=silent)
    assert combine(evenly(skills), tmp_path / "c", name="c", method="mean").architecture == stated
    edit_json(skills[2] / "skill.json", architecture={**silent, "chat_template_digest": "sha256:other"})
    with pytest.raises(PastryError, match=r"different chat template: .*v2 has .*v3 has sha256:other"):
        combine(evenly(skills), tmp_path / "d", name="c", method="mean")


def test_mistakes_are_refused_before_writing(skills, tmp_path):
    before = files_of(tmp_path)
    zero = partial(CheckpointUpdate, tmp_path / "start", tmp_path / "start")
    opposite = [(skills[0], 1.0), (skills[0], -1.0)]
    for terms, settings, message in [
        ([], {}, "no skill vector to combine; give at least one --skill"),
        (evenly(skills), {"method": "median"}, "method 'median' is unknown; wanted one of sum, mean"),
        (evenly(skills), {"method": "consensus", "agree": 4}, "--agree is 4; wanted a whole number from 1 to 3"),
        (evenly(skills), {"method": "ties", "density": 2.0}, "--density is 2.0; wanted a share"),
        (evenly(skills), {"dtype": "int8"}, "dtype 'int8' is not supported"),
        (evenly(skills), {"name": "two words"}, "skill vector: name: String should match pattern"),
        (evenly(skills), {"orthogonal_per": "layer"}, "--orthogonal-per 'layer' is unknown; wanted tensor or whole"),
        (evenly(skills), {"orthogonal_per": "whole"}, "--orthogonal-per whole goes with --orthogonal-to"),
        (evenly(skills), {"orthogonal_to": zero}, "the update that ends with .*start is zero"),
        (evenly(skills), {"out": skills[0]}, "v1 already exists"),
        ([(skills[0], 0.5)], {}, "the weight of .*v1 is 0.5, but mean takes all skills alike"),
        ([(skills[0], float("nan"))], {"method": "sum"}, "the weight of .*v1 is nan, wanted a finite number"),
        ([(skills[0], parse_lambda("all=1", ""))], {"method": "sum"}, "the weight of .*v1 is 'all=1', wanted a finite number"),
        (opposite, {"method": "sum", "match_norm": True}, "the combined vector is zero and cannot have the norm"),
        ([(skills[0], 1e44)], {"method": "sum"}, "the derived vector in tensor .* is -?inf at index .* use a wider --dtype"),
    ]:
        arguments = {"out": tmp_path / "c", "name": "c", "method": "mean", **settings}
        with pytest.raises(PastryError, match=message):
            combine(terms, arguments.pop("out"), **arguments)
    assert files_of(tmp_path) == before


def test_the_command(pastry, skills, sft, tmp_path):  # noqa: F811
    named = [part for path in skills for part in ("--skill", path)]
    code, out, _ = pastry("vector", "combine", *named, "--method", "consensus", "--agree", 2, "--out", tmp_path / "c")
    assert code == 0 and "consensus of 3" in out and "of the weights not zero" in out and "next: pastry vector inject" in out
    combine(evenly(skills), tmp_path / "same", name="combined", method="consensus", agree=2)
    assert same_bits(load(tmp_path / "c"), load(tmp_path / "same"))
    arguments = ["--orthogonal-to", f"{tmp_path / 'start'}..{sft}", "--match-norm", "--name", "shared", "--json"]
    code, out, _ = pastry("vector", "combine", *named, "--method", "mean", "--out", tmp_path / "d", *arguments)
    document = json.loads(out)
    assert code == 0 and document["name"] == "shared" and 0 < document["non_zero_share"] <= 1
    assert document["settings"].keys() == {"orthogonal_to", "orthogonal_per", "match_norm"}
    code, out, _ = pastry("vector", "verify", tmp_path / "d")
    assert code == 0 and "as recorded" in out
    weighted = ["--skill", f"{skills[0]}:0.5", "--skill", f"{skills[1]}:-2"]
    code, out, _ = pastry("vector", "combine", *weighted, "--method", "sum", "--out", tmp_path / "e", "--json")
    assert code == 0 and [source["weight"] for source in json.loads(out)["sources"]] == [0.5, -2.0]
    code, _, err = pastry("vector", "combine", *named, "--method", "mean", "--density", "0.5", "--out", tmp_path / "f")
    assert code == 2 and "--density is for ties" in err and "Traceback" not in err and not (tmp_path / "f").exists()


def test_help_teaches_every_method_with_an_example(pastry):  # noqa: F811
    code, out, _ = pastry("vector", "combine", "--help")
    assert code == 0 and "pastry vector combine --skill moon" in out
    for method in merging.METHODS:
        assert f"  {method}  " in out
    for setting in merging.SETTINGS:
        assert f"--{setting} " in out
