"""Which vectors a search takes, from the run and from the registry; no Ray."""

import re
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pastry.errors import PastryError
from pastry.registry.catalogue import Catalogue
from pastry.registry.tracking import Tracker
from pastry.vectors.extract import extract
from pastry.vectors.lora.factored import open_skill
from pastry_tune.vectors import gather
from tests.tune.conftest import make_config, stage_context

pytestmark = pytest.mark.slow  # MLflow makes a database


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A skill vector of a smaller model."""
    place = tmp_path_factory.mktemp("small")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 16}
    for seed, name in enumerate(("start", "end")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).save_pretrained(place / name)
    extract(place / "end", place / "start", place / "skill", name="small")
    return place / "skill"


@pytest.fixture(scope="module")
def catalogue(place, small, tmp_path_factory):
    """tree and small, tagged team: maps; ship under another name."""
    runs = tmp_path_factory.mktemp("registry")
    made = Catalogue(f"sqlite:///{runs}/mlflow.db", str(runs / "store"))
    made.register(place / "tree" / "skill", tags={"team": "maps"}, alias="good")
    made.register(small, tags={"team": "maps"})
    made.register(place / "ship" / "skill", name="boat", tags={"team": "sea"})
    return made


@pytest.fixture
def gathered(place, catalogue, tmp_path):
    """Gathers for some settings; gives the vectors' directories, the candidates' names and what was said."""

    def gather_for(**registry):
        config = make_config(place, combinations=["mean"], registry=registry)
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": catalogue.given})})
        said: list[str] = []
        with Tracker(config.tracking, tmp_path / "runs", "search", {}) as tracker:
            context = stage_context(config, place, "search", tracker, tmp_path / "out", said.append)
            vectors, candidates = gather(context)
        return vectors, [candidate.name for candidate in candidates], said

    return gather_for


def test_a_tag_brings_what_fits_and_says_what_does_not(gathered, place):
    vectors, names, said = gathered(tags={"team": "maps"})
    assert names == ["ship", "moon", "tree@1", "consensus(ship,moon,tree@1)", "mean(ship,moon,tree@1)"]
    fingerprint = open_skill(place / "tree" / "skill").manifest.fingerprint
    assert open_skill(vectors["tree@1"]).manifest.fingerprint == fingerprint
    parts = open_skill(vectors["consensus(ship,moon,tree@1)"]).manifest.sources
    assert [part.name for part in parts] == ["ship", "moon", "tree"]
    assert len(said) == 1 and said[0].startswith("models:/small/1 is left out: ")


def test_the_same_weights_are_tried_once(gathered):
    _, names, _ = gathered(tags={"team": "sea"})
    assert names == ["ship", "moon", "consensus(ship,moon)", "mean(ship,moon)"]


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ({"skills": ["models:/small/1"]}, "search.registry.skills: models:/small/1 does not fit the target: "),
        ({"skills": ["models:/tree@bad"]}, "models:/tree@bad: not in the registry at "),
        ({"tags": {"team": "none"}}, "search.registry: no skill vector tagged team: none in the registry at "),
    ],
)
def test_what_was_asked_for_and_cannot_be_had_is_refused_by_name(gathered, registry, message):
    with pytest.raises(PastryError, match=re.escape(message)) as refused:
        gathered(**registry)
    assert "\n" not in str(refused.value)


def test_a_revoked_vector_is_not_tried(gathered, catalogue, place):
    catalogue.register(place / "moon" / "skill", name="bad", tags={"team": "old"})
    catalogue.revoke("models:/bad/1", "trained on the wrong split")
    with pytest.raises(PastryError, match="no skill vector tagged team: old"):
        gathered(tags={"team": "old"})
    with pytest.raises(PastryError, match="trained on the wrong split"):
        gathered(skills=["models:/bad/1"])


def test_a_damaged_vector_is_named(place, tmp_path):
    broken = tmp_path / "place"
    shutil.copytree(place, broken, ignore=shutil.ignore_patterns("runs"))
    file = next((broken / "moon" / "skill").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    config = make_config(broken)
    with Tracker(config.tracking, broken / "runs", "search", {}) as tracker:
        context = stage_context(config, broken, "search", tracker, tmp_path / "out")
        with pytest.raises(PastryError, match=r"moon/skill: tensor .* the file is damaged"):
            gather(context)
