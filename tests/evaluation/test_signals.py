"""What is known of a source before RL, on two hand-made domains and a model that answers at random."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.config import FilesSettings, LabSettings, MatrixSettings, ModelShape
from pastry.domains import load_corpus, load_domain
from pastry.domains.base import Verdict
from pastry.domains.files import FilesDomain
from pastry.evaluation.signals import (
    SIGNALS,
    Attempts,
    Reader,
    Sampling,
    SignalAbsent,
    document_similarity,
    headroom,
    measure,
    planning_depth,
    sft_cosine,
    state_richness,
    trajectory_length,
)

SAMPLING = Sampling(samples=6, k=3, temperature=1.0, top_p=1.0, max_new_tokens=5, batch=8, seed=0)
TEXTS = {
    "old": ["the moon is far", "the sun is hot today"],
    "near": ["the moon is far", "the sun is cold"],
    "far": ["bread needs salt", "soup needs water"],
}


class OddLength(FilesDomain):
    """An answer is right if it has an odd number of characters: what a random model gets right sometimes."""

    def verify(self, question, completion, finished):
        right = len(completion) % 2 == 1
        return Verdict(correct=right, well_formed=True, mode="answer", lenient=right)


class Episodes(FilesDomain):
    def environment(self):
        return object


@pytest.fixture
def settings(tmp_path):
    subjects = {}
    for name, documents in TEXTS.items():
        rows = {
            "documents": [{"id": str(i), "text": text} for i, text in enumerate(documents)],
            "questions": [{"document": str(i), "question": f"what of {i} ?", "answer": "x"} for i in range(len(documents))],
        }
        subjects[name] = {key: tmp_path / f"{name}-{key}.jsonl" for key in rows}
        for key, content in rows.items():
            subjects[name][key].write_text("\n".join(map(json.dumps, content)))
    return FilesSettings(kind="files", subjects=subjects, prompt="<bos> <q> {question} <a>")


@pytest.fixture
def reader(settings, tmp_path):
    def make(name, kind=FilesDomain, model=tmp_path, base=tmp_path):
        domain = kind(name, settings, 0) if isinstance(kind, type) else kind
        return Reader(domain, model, base, [text for texts in TEXTS.values() for text in texts], SAMPLING)

    return make


@pytest.fixture
def model(tmp_path):
    """Write a random model, or one that lies `steps` of a fixed direction away from it."""

    def make(name, steps=0.0):
        directory = tmp_path / name
        load_corpus(LabSettings(kind="lab", entities=6), 0).save_tokenizer(directory)
        shape = ModelShape(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2).model_dump()
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**shape, vocab_size=len(AutoTokenizer.from_pretrained(directory)))
        )
        with torch.no_grad():
            for weight in made.parameters():
                weight.add_(steps * torch.randn_like(weight))
        made.save_pretrained(directory)
        return directory

    return make


def test_the_settings_name_every_signal_there_is():
    assert MatrixSettings(targets=["x"]).signals == list(SIGNALS)


def test_headroom_and_trajectory_length_follow_from_the_attempts(reader):
    source = reader("old")
    source.__dict__["attempts"] = [Attempts(0, [5] * 6), Attempts(2, [1, 1, 5, 5, 5, 5]), Attempts(6, [2] * 6)]
    solved_in_three = 1 - math.comb(4, 3) / math.comb(6, 3)
    assert headroom(source, source) == pytest.approx(((0 - 0) + (solved_in_three - 2 / 6) + (1 - 1)) / 3)
    assert trajectory_length(source, source) == pytest.approx((30 + 22 + 12) / 18)


def test_attempts_are_sampled_as_rl_would_and_failures_count_as_the_longest(reader, model):
    source = reader("old", OddLength, model("random"))
    assert len(source.attempts) == 2  # two questions, six answers each
    assert all(len(each.lengths) == 6 and 0 <= each.correct <= 6 for each in source.attempts)
    assert 0 < sum(each.correct for each in source.attempts) < 12
    for each in source.attempts:
        assert each.lengths.count(SAMPLING.max_new_tokens) >= 6 - each.correct
    assert reader("old", OddLength, model("same")).attempts == source.attempts


def test_a_domain_of_episodes_has_no_sampled_signal_and_keeps_the_others(reader):
    found = measure(["headroom", "state_richness"], reader("old", Episodes), [reader("far")])
    assert found == {
        "headroom": "'old' has an environment, and episodes are not sampled before RL",
        "state_richness": {"far": 17.5},
    }


def test_state_richness_is_the_mean_length_of_a_document(reader):
    assert state_richness(reader("old"), reader("far")) == (15 + 20) / 2


def test_planning_depth_is_the_mean_number_of_facts(reader):
    lab = load_domain("planet", LabSettings(kind="lab", entities=6), 0)
    assert planning_depth(reader("planet", lab), reader("old")) == pytest.approx((5 * 1 + 4 * 2) / 9)
    with pytest.raises(SignalAbsent, match="no question of 'old' says that it needs more than one fact"):
        planning_depth(reader("old"), reader("far"))


def test_similar_documents_are_more_similar(reader):
    old, near, far = map(reader, TEXTS)
    assert document_similarity(old, old) == pytest.approx(1)
    assert 0.5 < document_similarity(old, near) < 1
    assert document_similarity(old, far) == 0  # no word in common


def test_the_cosine_is_that_of_the_two_updates(reader, model):
    base, one, two, back = model("base"), model("one", 0.1), model("two", 0.2), model("back", -0.1)
    source = reader("old", model=one, base=base)
    assert sft_cosine(source, reader("near", model=two, base=base)) == pytest.approx(1, abs=1e-5)
    assert sft_cosine(source, reader("far", model=back, base=base)) == pytest.approx(-1, abs=1e-5)
    with pytest.raises(SignalAbsent, match="SFT changed no weight of 'old' or of 'far'"):
        sft_cosine(source, reader("far", model=base, base=base))
