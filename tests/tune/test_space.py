"""What a search tries: candidates, points, subsets, and the settings that say so."""

import typing

import pytest
from pydantic import ValidationError

from pastry.config import SearchSettings
from pastry.config.search import ModuleGroup
from pastry.errors import PastryError
from pastry.pipeline.ablation import module_groups
from pastry.pipeline.space import Space, as_lambda, attached, candidates, own_vectors, source_label
from pastry.vectors.modules import GROUPS, ModuleLambdas
from tests.tune.conftest import make_config

OWN = {"ship/1": ("ship", 1), "ship": ("ship", 2), "moon": ("moon", 2)}


def space(registered=(), **settings) -> Space:
    wanted = SearchSettings(**settings)
    return Space(tuple(candidates(OWN, registered, wanted)), wanted)


def test_the_consensus_of_two_or_more_is_always_tried_and_earlier_rounds_are_no_part_of_it():
    found = {each.name: each for each in space(["map@3"], combinations=["ties"]).candidates}
    assert list(found) == ["ship/1", "ship", "moon", "map@3", "consensus(ship,moon,map@3)", "ties(ship,moon,map@3)"]
    assert found["ship/1"].round == 1 and found["map@3"].round is None
    alone = candidates({"ship": ("ship", 1)}, [], SearchSettings(combinations=["ties"]))
    assert [each.name for each in alone] == ["ship"]


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(PastryError, match=r"'tees' is unknown; wanted one of .*ties"):
        space(combinations=["tees"])


def test_a_small_list_is_swept_and_a_large_or_continuous_space_is_searched():
    few = space(lambdas=[0.5, 1.0])
    assert few.method == "grid" and few.trials == 8
    assert space(lambdas=[k / 10 for k in range(1, 20)]).method == "optuna"
    assert space(lambdas={"low": 0, "high": 2}).method == "optuna"
    assert space(lambdas=[1.0], combinations=["linear"]).method == "optuna"
    assert space(lambdas=[1.0], method="random").method == "random"
    groups = space(lambdas=[0.5, 1.0], groups=["attention"])
    assert groups.trials == 4 * 2**2
    assert groups.lambda_keys == ["attention", "all"]


def test_fewer_trials_than_candidates_are_refused():
    with pytest.raises(PastryError, match=r"search.trials = 3, but there are 4 vectors"):
        space(method="optuna", trials=3).check()


@pytest.mark.parametrize(
    ("questions", "stopping", "subsets"),
    [
        (72, "auto", [24, 72]),
        (1000, "auto", [37, 111, 333, 1000]),
        (12, "auto", [12]),
        (72, None, [72]),
        (72, {"factor": 2, "smallest": 9}, [9, 18, 36, 72]),
    ],
)
def test_subsets_grow_by_the_factor_up_to_all_questions(questions, stopping, subsets):
    assert space(method="random", early_stopping=stopping).subsets(questions) == subsets
    assert space(lambdas=[1.0], early_stopping="auto").subsets(questions) == [questions]  # a grid's curve wants every point


def test_weights_of_a_linear_point_are_shares():
    mixed = space(combinations=["linear"])
    name = "linear(ship,moon)"
    point = mixed.point({"source": name, "lambda": 2.0, "weights": {"0": 0.2, "1": 0.6}})
    assert attached(point, mixed.named[name]) == pytest.approx({"ship": 0.5, "moon": 1.5})
    assert source_label(point) == "linear(0.25·ship,0.75·moon)"


def test_a_lambda_by_group_ends_with_all_the_rest():
    lam = as_lambda({"all": 0.5, "mlp": 1.0}, factor=0.5)
    assert isinstance(lam, ModuleLambdas) and lam.text == "mlp=0.5,all=0.25"
    names = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    assert lam.per_tensor(names) == {names[0]: 0.5, names[1]: 0.25}


def test_module_groups_of_the_settings_are_those_of_the_vectors():
    assert set(typing.get_args(ModuleGroup)) == set(GROUPS)


def test_every_tensor_in_a_layer_is_of_one_kind_and_one_third():
    layer = ["self_attn.q_proj", "mlp.up_proj", "input_layernorm"]
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{k}.{module}.weight" for k in range(4) for module in layer]
    groups = module_groups(names)
    assert {group: len(members) for group, members in groups.items()} == {
        "norms": 5, "embeddings": 1, "attention": 4, "mlp": 4, "early": 3, "middle": 6, "late": 3,
    }  # fmt: skip
    two = module_groups([name for name in names if ".2." not in name and ".3." not in name])
    assert len(two["early"]) == len(two["late"]) == 3 and "middle" not in two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambdas": []}, "no λ to try"),
        ({"lambdas": [0.0]}, "no λ to try"),
        ({"lambdas": {"low": 1.5, "high": 1.5}}, "the range of λ is empty: low = 1.5 must be below high = 1.5"),
        ({"lambdas": {"low": 0, "high": 2, "log": True}}, "log needs low above 0"),
        ({"lambdas": {"low": 0, "high": 2}, "method": "grid"}, "a range has no end of points"),
        ({"combinations": ["linear"], "method": "grid"}, "weights are continuous"),
        ({"penalties": {"retention": 1}, "retention_questions": 0}, "retention_questions = 0 does not measure"),
        ({"registry": {"skills": ["models:/a/1"], "tags": {"a": "b"}}}, "not both"),
        ({"registry": {"skills": ["a/1"]}}, "models:/"),
        ({"lamdas": [1]}, "lamdas"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SearchSettings(**settings)


def test_rounds_that_the_run_does_not_have(tmp_path):
    with pytest.raises(PastryError, match=r"search.rounds = \[2\]: wanted some of 1 to 1"):
        own_vectors(make_config(tmp_path, rounds=[2]))
