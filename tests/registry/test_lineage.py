"""base → SFT → RL → vector → recipe → deployment, from MLflow alone."""

import json
import shutil

import pytest

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.deployments import Deployment
from pastry.registry.lineage import Lineage, tree
from pastry.registry.recipes import Ingredient, RegisteredRecipe, SkillIngredient
from pastry.registry.register import register_recipe
from pastry.registry.resolve import local_path
from pastry.registry.tracking import Tracker
from pastry.vectors.skill import Skill
from tests.registry.test_catalogue import vector

DATA = "sha256:" + f"{1:064x}"


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """What a run leaves in MLflow, its stages' directories gone."""
    folder = tmp_path_factory.mktemp("runs")
    skill = vector(folder, "planet", 1)
    manifest = Skill(skill).manifest
    stages = {
        "pretrain": ("pretrain", manifest.base, {}),
        "sft/planet/1": ("sft", manifest.start, {"start": manifest.base, "data": "sha256:documents"}),
        "rl/planet/1": ("rl", manifest.end, {"start": manifest.start, "base": manifest.base, "data": DATA}),
        "extract/planet/1": ("extract", manifest.fingerprint, {"end": manifest.end, "start": manifest.start}),
        "sft/company": ("sft", "blake3:company", {"start": manifest.base}),
    }
    with Tracker(Tracking(), folder, "run", {}) as tracker:
        for name, (kind, made, inputs) in stages.items():
            stage = tracker.stage(name, kind, {}, lambda point: None, folder / "work" / name)
            stage.end({}, {"pastry.fingerprint": made, "pastry.inputs": json.dumps(inputs)}, "FINISHED")
            run_id = stage.run_id
        assert tracker.outbox.settle(180)
        version = Catalogue(tracker.uri).register(skill, name="lab-planet", alias="champion")
        target = Ingredient(model=str(folder / "gone"), fingerprint="blake3:company")
        ingredient = SkillIngredient(model=version.uri, fingerprint=version.fingerprint, name="planet", lam=0.5)
        register_recipe(tracker.client, "with-planet", RegisteredRecipe(target=target, skills=[ingredient]), run_id)
    shutil.rmtree(folder / "work")
    return folder


@pytest.fixture(scope="module")
def catalogue(storage):
    return Catalogue(f"sqlite:///{storage}/mlflow.db")


def labels(node, depth=0):
    return [(depth, node["role"], node["label"])] + [line for each in node["next"] for line in labels(each, depth + 1)]


def test_backwards_to_base_and_data(catalogue):
    graph = Lineage(catalogue)
    found = tree(graph, graph.find("models:/lab-planet@champion"), graph.made_from)
    lines = [line for each in found["next"] for line in labels(each)]
    assert (0, "end", "rl/planet/1") in lines and (1, "start", "sft/planet/1") in lines and (2, "start", "pretrain") in lines
    assert any(node["fingerprint"] == DATA for node in found["next"]), "the digest of RL's tasks"
    assert found["made_by"][0]["stage"] == "extract/planet/1" and len(found["made_by"][0]["run"]) == 32


def test_forwards_from_a_dataset_to_the_server_that_answers_with_it(catalogue, storage, pastry):
    place = local_path("models:/lab-planet/1", catalogue.given)
    deployment = Deployment({"planet": place}, "127.0.0.1", 8123, catalogue.given)
    deployment.record()
    said = pastry("lineage", DATA)
    for text in ("rl/planet/1", "models:/lab-planet/1 @champion", "models:/with-planet/1", ":8123 as 'planet' since"):
        assert text in said, text
    document = json.loads(pastry("lineage", DATA, "--json"))
    assert {each["role"] for each in document["made_of_it"]} == {"data"}
    deployment.withdraw()
    assert ":8123" not in pastry("lineage", DATA) and not catalogue.show("models:/lab-planet/1").served


def test_by_directory_run_fingerprint_and_its_first_digits(catalogue, storage):
    graph = Lineage(catalogue)
    node = graph.find("models:/lab-planet/1")
    digits = node.fingerprint.removeprefix("blake3:")
    for what in (str(storage / "planet"), node.made_by[0]["run"], node.fingerprint, digits[:12]):
        assert graph.find(what) is node
    assert graph.find(str(storage / "planet-base")).label == "pretrain"
    with pytest.raises(PastryError, match="nothing in the registry is or was made from this"):
        graph.find("blake3:" + 64 * "0")


def test_a_server_that_was_killed_is_replaced_by_its_like_and_a_revoked_vector_is_not_served(catalogue, storage, tmp_path):
    catalogue.register(vector(tmp_path, "served", 5))
    place = local_path("models:/served/1", catalogue.given)
    for _ in range(2):
        Deployment({"served": place}, "10.0.0.1", 80, catalogue.given).record()
    assert [entry["endpoint"] for entry in catalogue.show("models:/served/1").served] == ["http://10.0.0.1:80"]
    assert catalogue.revoke("models:/served/1", "it swears").version.served, "who revokes is told where it is in memory"
    with pytest.raises(PastryError, match="it swears"):
        Deployment({"served": place}, "10.0.0.1", 80, catalogue.given)


def test_serving_goes_on_without_a_registry(storage, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    said = []
    for uri in (None, "http://127.0.0.1:9"):
        deployment = Deployment({"planet": storage / "planet"}, "127.0.0.1", 80, uri, said.append)
        deployment.record()
        deployment.withdraw()
    assert len(said) == 1 and "does not answer" in said[0]
