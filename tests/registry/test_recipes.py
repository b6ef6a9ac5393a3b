"""A registered recipe answers from plain MLflow anywhere, and is written out as an ordinary checkpoint with the same logits."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from pastry.engine.transformers_engine import TransformersEngine
from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.recipes import Ingredient, RegisteredRecipe, SkillIngredient
from pastry.registry.register import register_recipe
from pastry.registry.resolve import local_path
from pastry.vectors.extract import extract
from pastry.vectors.modules import parse_lambda
from tests.registry.test_catalogue import flip
from tests.serve.test_serve import checkpoint

pytestmark = pytest.mark.slow
PROMPTS = ["<bos> <q> what is the city", "<bos> the"]
RULES = "attention=0.5,all=0.25"
PREDICT = """
import json, sys
import mlflow

mlflow.set_tracking_uri(sys.argv[1])
try:
    recipe = mlflow.pyfunc.load_model(sys.argv[2])
    print(json.dumps(recipe.predict(json.loads(sys.argv[3]), params={"max_new_tokens": 5})))
except Exception as error:
    print(error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def catalogue(folder):
    return Catalogue(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def recipe(folder, catalogue):
    """A target and a vector that lie in the registry alone, one that lies in a directory, and a recipe of all three."""
    start = checkpoint(folder / "start", 0)
    extract(checkpoint(folder / "end", 1), start, folder / "skill", name="skill")
    extract(checkpoint(folder / "other-end", 2), start, folder / "other", name="other")
    target, skill, other = (catalogue.register(folder / part, name=part) for part in ("start", "skill", "other"))
    made = RegisteredRecipe(
        target=Ingredient(model=target.uri, fingerprint=target.fingerprint),
        skills=[
            SkillIngredient(model=skill.uri, fingerprint=skill.fingerprint, name="skill", lam=0.5),
            SkillIngredient(model=str(folder / "other"), fingerprint=other.fingerprint, name="other", lam=RULES),
        ],
    )
    client = catalogue.client
    experiment = client.create_experiment("recipes", (folder / "mlartifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    version = register_recipe(client, "injected", made, run, alias="champion")
    assert register_recipe(client, "injected", made, run) == version, "the same recipe is the same version"
    return version


@pytest.fixture(scope="module")
def engine(folder):
    engine = TransformersEngine(folder / "start", {"skill": folder / "skill", "other": folder / "other"})
    engine.attach({"skill": 0.5, "other": parse_lambda(RULES, "here")})
    return engine


def predict(catalogue, uri, cwd):
    """In a fresh process that knows MLflow alone, in another working directory."""
    command = [sys.executable, "-c", PREDICT, catalogue.given, uri, json.dumps(PROMPTS)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_it_answers_from_plain_mlflow_in_a_fresh_process(recipe, catalogue, engine, tmp_path):
    expected = [completion.text for completion in engine.generate(PROMPTS, max_new_tokens=5)]
    assert json.loads(predict(catalogue, "models:/injected@champion", tmp_path)) == expected


def test_a_recipe_is_a_few_kilobytes(recipe, catalogue, folder):
    files = [file for file in (folder / "mlartifacts").rglob("*") if file.is_file()]
    assert files and sum(file.stat().st_size for file in files) < 20_000


def test_written_out_it_has_the_same_logits(recipe, catalogue, engine, tmp_path, pastry):
    said = pastry("vector", "inject", "--recipe", "models:/injected@champion", "--out", tmp_path / "out")
    assert "realised ratio 1.0000" in said
    ids = engine.tokenizer(PROMPTS[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        # Of one skill they are equal to the bit; of two the engine adds one after the other, inject their sum.
        torch.testing.assert_close(written, engine.model(ids).logits, rtol=1e-4, atol=1e-4)
    for arguments, wanted in (
        (("--recipe", "models:/skill/1"), "is a skill, not a recipe"),
        (("--recipe", recipe.uri, "--target", "x", "--skill", "y"), "give --target with one --skill or more, or --recipe"),
        (("--target", "x"), "give --target with one --skill or more"),
        (("--target", recipe.uri, "--skill", "models:/skill/1"), "is a recipe, not weights"),
    ):
        assert wanted in pastry("vector", "inject", *arguments, "--out", tmp_path / "no"), arguments


def test_what_it_is_made_of_is_verified_when_it_is_loaded(recipe, catalogue, folder, tmp_path):
    opened = RegisteredRecipe.model_validate(recipe.recipe)
    place = local_path("models:/start/1", catalogue.given)
    flip(place / "model.safetensors")
    with pytest.raises(PastryError, match=r"models:/start/1: tensor .* is not as it was registered"):
        opened.open(catalogue.given)
    flip(place / "model.safetensors")
    (folder / "other").rename(folder / "kept")
    extract(folder / "start", folder / "end", folder / "other", name="other")
    with pytest.raises(PastryError, match="the recipe was made with"):
        opened.open(catalogue.given)


def test_a_revoked_skill_takes_the_recipe_with_it(recipe, catalogue, folder, tmp_path, pastry):
    done = catalogue.revoke("models:/skill/1", "it swears")
    assert done.used_in == ["models:/injected/1"]
    assert (
        "models:/skill/1: revoked" in (said := predict(catalogue, "models:/injected@champion", tmp_path))
        and "it swears" in said
    )
    assert "it swears" in pastry("vector", "inject", "--recipe", recipe.uri, "--out", tmp_path / "out")
    catalogue.revoke("models:/other/1", "it lies")
    directory = Ingredient(model=str(folder / "kept"), fingerprint=recipe.facts.inputs["skill other"])
    with pytest.raises(PastryError, match=r"kept, which is models:/other/1: revoked on .*: it lies"):
        directory.open(catalogue.given)
