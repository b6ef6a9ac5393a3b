"""Register, list, show, promote, revoke and pull, in an SQLite file."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.resolve import local_path
from pastry.registry.versions import Gain
from pastry.vectors.extract import extract
from pastry.vectors.files import write_json
from pastry.vectors.skill import Skill

TENSOR = "model.layers.0.mlp.up_proj.weight"
GAIN = Gain(target="company", lam=0.75, n=144, before=0.5, after=0.9, mean=0.4, low=0.3, high=0.5)


def checkpoint(directory, seed):
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({TENSOR: torch.randn(8, 8, generator=generator)}, directory / "model.safetensors")
    write_json(directory / "config.json", {"model_type": "llama", "vocab_size": 8, "hidden_size": 8})
    return directory


def vector(folder, name, seed):
    """A skill vector, with the checkpoints it was cut out of beside it."""
    parts = {part: checkpoint(folder / f"{name}-{part}", 10 * seed + i) for i, part in enumerate(("base", "start", "end"))}
    facts = {"base": parts["base"], "domain": "planet", "data_digest": "sha256:" + f"{seed:064x}"}
    extract(parts["end"], parts["start"], folder / name, name=name, **facts)
    return folder / name


def flip(file):
    """A bit of the last byte, in place."""
    with open(file, "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One registry for the module: making MLflow's tables takes seconds."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def catalogue(folder):
    return Catalogue(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def polite(folder, catalogue):
    """A registered vector: its directory and its version."""
    directory = vector(folder, "polite", 1)
    said = {"alias": "champion", "tags": {"team": "search"}, "description": "Answers politely.", "gain": GAIN}
    return directory, catalogue.register(directory, **said)


def test_a_version_says_what_it_is_from_what_and_how_good(polite, catalogue):
    directory, version = polite
    manifest = Skill(directory).manifest
    assert (version.uri, version.aliases, version.tags) == ("models:/polite/1", ["champion"], {"team": "search"})
    assert version.facts.inputs == {
        "end": manifest.end,
        "start": manifest.start,
        "base": manifest.base,
        "data": manifest.data_digest,
    }
    card = catalogue.show("models:/polite@champion").description
    assert card.startswith("Answers politely.")
    for said in (
        manifest.base,
        f"{manifest.cosine_to_sft:+.4f} to the SFT update",
        "paired gain +40.0 points, 95 % interval +30.0 to +50.0, n = 144",
        "**λ.** 0.75",
        "pastry vector inject --target MODEL --skill models:/polite/1:0.75",
    ):
        assert said in card, said


def test_weights_are_in_the_store_and_need_the_directory_no_more(polite, catalogue, folder, tmp_path):
    directory, version = polite
    place = local_path(version.uri, catalogue.given)
    assert place == folder / "store" / version.fingerprint.replace(":", "-")
    assert os.stat(place / "skill.safetensors").st_ino == os.stat(directory / "skill.safetensors").st_ino, "linked, not copied"
    catalogue.pull(version.uri, tmp_path / "pulled")
    assert Skill(tmp_path / "pulled").manifest == Skill(directory).manifest
    assert sorted(file.name for file in (tmp_path / "pulled").iterdir()) == ["skill.json", "skill.safetensors"]


def test_the_same_vector_from_elsewhere_is_the_same_version_and_keeps_what_was_said(polite, catalogue, tmp_path):
    directory, version = polite
    shutil.copytree(directory, tmp_path / "copy")
    again = catalogue.register(tmp_path / "copy", tags={"checked": "yes"})
    assert (again.uri, again.location, again.description) == (version.uri, version.location, version.description)
    assert again.tags == {"team": "search", "checked": "yes"} and again.facts == version.facts


def test_a_deleted_or_damaged_copy_is_refused_and_registering_again_repairs_it(catalogue, folder, tmp_path, pastry):
    directory = vector(tmp_path, "fragile", 2)
    version = catalogue.register(directory)
    place = local_path(version.uri, catalogue.given)
    shutil.rmtree(place)
    with pytest.raises(PastryError, match=r"models:/fragile/1: registered at .*no directory is any more; register it again"):
        local_path(version.uri, catalogue.given)
    shutil.copytree(directory, folder / "kept")
    catalogue.register(directory)
    flip(place / "skill.safetensors")
    for command in (
        ("pull", version.uri, "--out", tmp_path / "pulled"),
        ("inject", "--target", tmp_path / "fragile-start", "--skill", f"{version.uri}:0.5", "--out", tmp_path / "out"),
        ("compress", version.uri, "--out", tmp_path / "out"),
        ("inspect", version.uri, "--rank"),
        ("compare", version.uri, version.uri),
        ("combine", "--skill", version.uri, "--skill", version.uri, "--method", "mean", "--out", tmp_path / "out"),
        ("to-lora", version.uri, "--rank", 1, "--out", tmp_path / "out"),
        ("verify", version.uri),
    ):
        assert f"tensor {TENSOR}" in pastry("vector", *command), command
    assert not (tmp_path / "pulled").exists() and not (tmp_path / "out").exists()
    with pytest.raises(PastryError, match=r"tensor model\.layers\.0\.mlp\.up_proj"):
        catalogue.register(directory)  # the same file, by its other link
    catalogue.register(folder / "kept")
    assert Skill(local_path(version.uri, catalogue.given)).verify() is None
    write_json(place / "skill.json", json.loads((place / "skill.json").read_text()) | {"lambda_advice": 9.0})
    with pytest.raises(PastryError, match=r"models:/fragile/1: file skill\.json in .* is not as it was registered"):
        local_path(version.uri, catalogue.given)


def test_a_checkpoint_registers_and_every_tensor_is_checked_when_it_is_used(catalogue, tmp_path):
    version = catalogue.register(checkpoint(tmp_path / "target", 5), name="company-sft", alias="now")
    place = local_path("models:/company-sft@now", catalogue.given)
    flip(place / "model.safetensors")
    with pytest.raises(PastryError, match=rf"^models:/company-sft/1: tensor {TENSOR} in .* is not as it was registered"):
        local_path(version.uri, catalogue.given)
    with pytest.raises(PastryError, match="holds versions of another kind"):
        catalogue.register(vector(tmp_path, "other", 6), name="company-sft")


def test_promote_says_from_which_version(catalogue, tmp_path, pastry):
    for seed in (21, 22):
        catalogue.register(vector(tmp_path / str(seed), "moved", seed))
    assert "(best was not given)" in pastry("vector", "promote", "models:/moved/1", "best")
    said = pastry("vector", "promote", "models:/moved/2", "best")
    assert "models:/moved@best is now version 2 (best was 1)" in said and "back: pastry vector promote models:/moved/1" in said
    assert catalogue.show("models:/moved@best").number == 2


def test_a_revoked_version_is_refused_everywhere_with_the_reason(catalogue, tmp_path, pastry):
    directory = vector(tmp_path, "bad", 3)
    catalogue.register(directory, alias="champion")
    said = pastry("vector", "revoke", "models:/bad@champion", "--reason", "trained on the test questions")
    assert "still named @champion" in said
    for command in (
        ("vector", "promote", "models:/bad/1", "other"),
        ("vector", "pull", "models:/bad/1", "--out", tmp_path / "out"),
        ("vector", "inspect", "models:/bad@champion"),
        ("vector", "inject", "--target", tmp_path / "bad-start", "--skill", "models:/bad/1", "--out", tmp_path / "out"),
        ("vector", "register", directory),
    ):
        assert "trained on the test questions" in pastry(*command), command
    first = catalogue.show("models:/bad/1").revoked
    assert catalogue.revoke("models:/bad/1", "another reason").version.revoked == first, "the first reason stays"
    assert "REVOKED" in pastry("vector", "show", "models:/bad/1") and "REVOKED" in pastry("vector", "list")


def test_list_filters_and_sorts(polite, catalogue, tmp_path, pastry):
    for seed, gain in ((31, 0.1), (32, 0.2)):
        better = GAIN.model_copy(update={"mean": gain})
        catalogue.register(vector(tmp_path, f"sorted-{seed}", seed), tags={"group": "sorted", "n": str(seed)}, gain=better)
    found = json.loads(pastry("vector", "list", "--tag", "group=sorted", "--sort", "gain", "--json"))["versions"]
    assert [version["name"] for version in found] == ["sorted-32", "sorted-31"]
    assert [version.name for version in catalogue.list(tags={"group": "sorted", "n": "31"})] == ["sorted-31"]
    assert [version.aliases for version in catalogue.list(name="polite")] == [["champion"]]
    table = pastry("vector", "list", "--name", "polite")
    assert "+40.0 [+30.0, +50.0] on company, n = 144" in table and "champion" in table
    assert "nothing registered with this name and these tags" in pastry("vector", "list", "--tag", "group=none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:/polit@champion", "no model 'polit'; did you mean polite?"),
        ("models:/polite@champoin", "polite has versions 1, aliases @champion (1)"),
        ("models:/polite/7", "polite has versions 1"),
        ("models:/polite", "say which version: models:/polite@champion or models:/polite/1"),
        ("models:/polite/one", "say which version"),
        ("models:/", "say which version"),
        ("polite", "no such directory"),
    ],
)
def test_what_does_not_exist_is_said_with_what_does(polite, catalogue, text, said):
    with pytest.raises(PastryError) as error:
        local_path(text, catalogue.given)
    assert said in str(error.value)


def test_what_cannot_be_registered(catalogue, tmp_path, monkeypatch):
    good = vector(tmp_path, "good", 4)
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ({"directory": tmp_path / "empty"}, "neither a skill vector nor a checkpoint"),
        ({"directory": good, "name": "a/b"}, "name 'a/b': wanted letters"),
        ({"directory": good, "tags": {"pastry.revoked": "{}"}}, "tag 'pastry.revoked'"),
    ):
        with pytest.raises(PastryError, match=said):
            catalogue.register(**arguments)
    with pytest.raises(PastryError, match=r"give --store, or set PASTRY_STORE"):
        Catalogue("http://127.0.0.1:9").register(good)
    flip(good / "skill.safetensors")
    with pytest.raises(PastryError, match=rf"^{re.escape(str(good))}: tensor .* has digest"):
        catalogue.register(good)
    assert not catalogue.list(name="good")


def test_a_registry_that_is_down_is_said_at_once(tmp_path):
    down = Catalogue("http://127.0.0.1:9", str(tmp_path / "store"))
    for action in (down.list, lambda: down.show("models:/a/1"), lambda: down.register(vector(tmp_path, "v", 7))):
        with pytest.raises(PastryError, match=r"^MLflow at http://127\.0\.0\.1:9 does not answer; start it, or set"):
            action()


def test_a_listing_takes_two_requests_however_many_versions_there_are(polite, catalogue, monkeypatch):
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def statements():
        asked = []
        listener = lambda *arguments: asked.append(arguments[2])  # noqa: E731
        event.listen(Engine, "before_cursor_execute", listener)
        catalogue.list()
        event.remove(Engine, "before_cursor_execute", listener)
        return len(asked)

    few = statements()
    client = catalogue.client
    for number in range(40):
        client.create_registered_model(f"many-{number}")
        client.create_model_version(f"many-{number}", "file:///nowhere", tags={"pastry.fingerprint": f"blake3:{number}"})
    assert statements() == few
