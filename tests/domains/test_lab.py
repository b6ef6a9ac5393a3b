"""The lab's worlds, texts, tokenizer and verifier."""

import random
import re
from collections import Counter

import pytest
from transformers import AutoTokenizer

from pastry.config import LabSettings
from pastry.domains import load_corpus, load_domain
from pastry.domains.lab.world import SUBJECTS, World
from pastry.errors import PastryError

FULL = LabSettings(kind="lab")


@pytest.fixture(scope="module")
def planet():
    return load_domain("planet", FULL, seed=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    load_corpus(FULL, seed=5).save_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_a_world_follows_from_its_seed():
    assert World(5, 6, 2).groups == World(5, 6, 2).groups
    assert World(5, 6, 2).groups != World(6, 6, 2).groups


def test_no_entity_occurs_twice_and_one_off_names_are_nobodys():
    world = World(5, 24, 2)
    names = [entity.name for group in world.groups.values() for entity in group]
    assert len(names) == len(set(names)) == 24 * 6 * 3
    assert not set(names) & set(world.unused_names)


def test_domains_share_no_values_and_no_keys():
    world = World(5, 6, 1)
    words = [word for values in world.values.values() for word in values]
    assert len(words) == len(set(words)) == 6 * 4 * 16
    keys = [key for relation, attributes, _ in SUBJECTS.values() for key in (relation, *attributes)]
    assert len(keys) == len(set(keys))


def test_questions_of_one_and_two_facts_have_the_worlds_answers(planet):
    group = planet.world.groups["planet", 1]
    asked = planet.questions(1)
    assert len(asked) == 24 * 9
    assert [q.facts for q in asked[:9]] == [1] * 5 + [2] * 4
    first, related = group[0], group[group[0].related]
    assert asked[0].answer == related.name
    assert asked[0].prompt == f"<bos> <q> what is the neighbor of {first.name} ? <a>"
    assert asked[5].prompt == f"<bos> <q> what is the mineral of the neighbor of {first.name} ? <a>"
    assert asked[5].answer == dict(related.facts)["mineral"]


def test_validation_and_test_ask_about_different_entities(planet):
    def entities(split):
        return {question.id.split("/")[2] for question in planet.questions(1, split)}

    assert len(planet.questions(1, "validation")) == 72 and len(planet.questions(1, "test")) == 144
    assert not entities("validation") & entities("test")


def test_sft_never_asks_about_a_new_entity(planet):
    new = {entity.name for entity in planet.world.groups["planet", 1]}
    epoch = planet.sft_epoch(1, random.Random(0))
    assert len(epoch) == 96 + 48 + 96
    for text in epoch:
        (content, counts), *rest = text.segments
        assert counts and not rest
        if "<q>" in content:
            assert not any(name in content for name in new)


def test_derived_texts_are_the_documents_facts_one_by_one_without_a_question(planet):
    epoch = [text.segments[0][0] for text in planet.derived_epoch(1, random.Random(0))]
    group = planet.world.groups["planet", 1]
    left = set(epoch)
    for entity in group:
        for key, value in entity.facts:
            forms = {
                f"<bos> the {key} of {entity.name} is {value} . <eos>",
                f"<bos> {entity.name} has the {key} {value} . <eos>",
                f"<bos> astronomers say the {key} of {entity.name} is {value} . <eos>",
            }
            assert len(forms & left) == 1
            left -= forms
    assert len(epoch) == 24 * 5 + 48 + 96
    assert not any(entity.name in text for text in left for entity in group)


def test_a_mixture_has_kinds_of_text_by_their_shares():
    corpus = load_corpus(FULL, seed=5)
    epoch = corpus.mixture_epoch({"recall": 3, "one_off": 1}, random.Random(0))
    one_offs = [text for text in epoch if len(text.segments) > 1]
    recited = [text for text in epoch if re.search(r"<a> the .* \. answer :", text.segments[0][0])]
    assert len(one_offs) + len(recited) == len(epoch) == 6 * 216 + 1000
    assert 0.22 < len(one_offs) / len(epoch) < 0.28
    # 1,722 recitations of 1,296 questions: every one once, some twice
    assert len(set(recited)) == 6 * 216 and max(Counter(recited).values()) == 2


def test_each_kind_of_text_is_what_it_is_called():
    corpus = load_corpus(FULL, seed=5)
    starts = {
        "documents": "<bos> (?!<q>)",
        "direct": "<bos> <q> .* <a> answer :",
        "recall": "<bos> <q> .* <a> the .* answer :",
        "one_off": "<bos> <q> .* <a> the$",
    }
    assert set(starts) == set(corpus.kinds)
    for kind, start in starts.items():
        made = corpus.texts_of(kind, random.Random(0))
        assert made and all(re.match(start, text.segments[0][0]) for text in made), kind


def test_an_unknown_kind_of_text_is_refused_with_those_there_are():
    corpus = load_corpus(LabSettings(kind="lab", one_off=0), seed=5)
    with pytest.raises(PastryError, match=r"midtrain.mixture: .*'one_off'; there are: documents, direct, recall$"):
        corpus.mixture_epoch({"one_off": 1}, random.Random(0))


def test_a_mixtures_order_of_keys_changes_nothing():
    corpus = load_corpus(FULL, seed=5)
    mixture = {"documents": 1, "direct": 2}
    turned = dict(reversed(mixture.items()))
    assert corpus.mixture_epoch(mixture, random.Random(0)) == corpus.mixture_epoch(turned, random.Random(0))
    assert corpus.data_digest(mixture) == corpus.data_digest(turned) != corpus.data_digest(["documents"])


def test_documents_are_written_anew_every_epoch(planet):
    rng = random.Random(0)
    assert planet.sft_epoch(1, rng) != planet.sft_epoch(1, rng)
    assert planet.sft_epoch(1, random.Random(1)) == planet.sft_epoch(1, random.Random(1))


def test_one_off_recitations_skip_what_nobody_could_predict():
    corpus = load_corpus(FULL, seed=5)
    one_offs = [text for text in corpus.pretraining_epoch(random.Random(0)) if len(text.segments) > 1]
    assert len(one_offs) == 1000
    for text in one_offs:
        (question, counts), *rest = text.segments
        assert question.endswith("<a> the") and not counts
        final = rest[-1][0].removeprefix(" answer : ").removesuffix(" <eos>")
        skipped = [segment.strip() for segment, trained in rest if not trained]
        assert skipped[-1] == final  # the answer's first mention is skipped, its copy is trained
        assert rest[-1][1]


def test_every_text_is_within_the_vocabulary_and_survives_the_tokenizer(planet, tokenizer):
    epoch = load_corpus(FULL, seed=5).pretraining_epoch(random.Random(0)) + planet.sft_epoch(1, random.Random(0))
    for text in epoch[::17]:
        whole = "".join(segment for segment, _ in text.segments)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).split() == whole.split()
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id


def test_the_tokenizer_is_the_same_beside_a_model_configuration(tmp_path):
    # AutoTokenizer looks at config.json too: some architectures make it ignore the tokenizer's own class
    from transformers import AutoConfig

    from pastry.config import ModelShape

    load_corpus(FULL, seed=5).save_tokenizer(tmp_path)
    alone = AutoTokenizer.from_pretrained(tmp_path)("what is the")["input_ids"]
    AutoConfig.for_model(ModelShape().model_type).save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("what is the")["input_ids"] == alone


@pytest.mark.parametrize(
    ("completion", "finished", "expected"),
    [
        ("answer : {v}", True, (True, True, "direct", True)),
        ("the mineral of {e} is {v} . answer : {v}", True, (True, True, "recall", True)),
        ("answer : {v}", False, (False, False, "direct", True)),
        ("answer : wrong", True, (False, True, "direct", False)),
        ("answer : {v} answer : {v}", True, (False, False, "direct", True)),
        ("answer : {v} .", True, (False, True, "direct", True)),
        ("{v}", True, (False, False, "other", True)),
        ("answer :", True, (False, False, "direct", False)),
        ("", True, (False, False, "direct", False)),
        ("astronomers say {v} . answer : {v}", True, (True, True, "other", True)),
    ],
)
def test_the_verifier(planet, completion, finished, expected):
    question = planet.questions(1)[1]
    entity = planet.world.groups["planet", 1][0].name
    verdict = planet.verify(question, completion.format(v=question.answer, e=entity), finished)
    assert (verdict.correct, verdict.well_formed, verdict.mode, verdict.lenient) == expected


def test_an_unknown_domain_is_refused():
    with pytest.raises(PastryError, match="no domain 'moon': choose one of planet"):
        load_domain("moon", FULL, 0)
