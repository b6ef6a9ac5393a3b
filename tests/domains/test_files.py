"""One's own documents and questions."""

import json
import random

import pytest

from pastry.config import FilesSettings
from pastry.domains import load_corpus, load_domain
from pastry.errors import PastryError


@pytest.fixture
def subject(tmp_path):
    """Write a subject's files; gives its settings."""

    def write(documents, questions, derived=None, **settings):
        files = {}
        for name, rows in (("documents", documents), ("questions", questions), ("derived", derived)):
            if rows is not None:
                lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
                files[name] = tmp_path / f"{name}.jsonl"
                files[name].write_text("\n".join(lines))
        return FilesSettings.model_validate({"kind": "files", "subjects": {"news": files}, **settings})

    return write


DOCUMENTS = [{"id": f"d{i}", "text": f"The colour of thing {i} is hue {i}."} for i in range(12)]
QUESTIONS = [{"document": f"d{i}", "question": f"Which colour has thing {i}?", "answer": f"hue {i}"} for i in range(12)]


def test_parts_and_splits_share_no_document(subject):
    domain = load_domain("news", subject(DOCUMENTS, QUESTIONS, parts=3), seed=0)
    parts = [set(domain.documents(part)) for part in (1, 2, 3)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 12
    asked = [{q.id for q in domain.questions(1, split)} for split in ("validation", "test")]
    assert len(asked[0]) == 1 and len(asked[1]) == 3 and not asked[0] & asked[1]


def test_an_epoch_is_every_document_once(subject):
    domain = load_domain("news", subject(DOCUMENTS, QUESTIONS), seed=0)
    epoch = [segment for text in domain.sft_epoch(1, random.Random(0)) for segment, _ in text.segments]
    assert sorted(epoch) == sorted(row["text"] for row in DOCUMENTS)


@pytest.mark.parametrize(
    ("completion", "correct"),
    [(" The Hue 3.\nQuestion: next", True), ("hue 3", True), ("hue 33", False), ("", False), ("It is hue 3", False)],
)
def test_the_verifier_is_squads_exact_match_of_the_first_line(subject, completion, correct):
    domain = load_domain("news", subject(DOCUMENTS, QUESTIONS), seed=0)
    question = next(q for q in domain.questions(1) if q.answer == "hue 3")
    assert domain.verify(question, completion, True).correct is correct


@pytest.mark.parametrize(
    ("documents", "questions", "message"),
    [
        (["{"], QUESTIONS, r"documents.jsonl, line 1: not JSON"),
        ([{"id": "d0"}], QUESTIONS, r"documents.jsonl, line 1: needs text"),
        ([{"id": "d0", "text": " "}], QUESTIONS, r"documents.jsonl, line 1: needs text"),
        ([], QUESTIONS, r"documents.jsonl: empty"),
        (DOCUMENTS[:1] * 2, QUESTIONS[:1], r"ids repeat"),
        (DOCUMENTS[:1], QUESTIONS[:2], r"questions.jsonl, line 2: document 'd1' is not in"),
        (DOCUMENTS, [[1]], r"questions.jsonl, line 1: needs document, question, answer"),
    ],
)
def test_malformed_rows_are_named(subject, documents, questions, message):
    with pytest.raises(PastryError, match=message):
        load_domain("news", subject(documents, questions), seed=0)


DERIVED = [{"document": f"d{i}", "text": f"Thing {i} is not of hue {j}."} for i in range(12) for j in range(20, 23)]


def plain(epoch):
    return sorted(segment for text in epoch for segment, _ in text.segments)


def test_derived_texts_are_those_of_the_parts_documents(subject):
    domain = load_domain("news", subject(DOCUMENTS, QUESTIONS, DERIVED, parts=3), seed=0)
    for part in (1, 2, 3):
        things = [document.split()[4] for document in domain.documents(part)]
        wanted = sorted(row["text"] for row in DERIVED if row["text"].split()[1] in things)
        assert plain(domain.derived_epoch(part, random.Random(0))) == wanted and len(wanted) == 12


def test_only_the_digest_that_covers_derived_texts_knows_them(subject):
    before = load_domain("news", subject(DOCUMENTS, QUESTIONS, DERIVED), seed=0)
    after = load_domain("news", subject(DOCUMENTS, QUESTIONS, DERIVED[1:]), seed=0)
    assert before.data_digest(1) == after.data_digest(1)
    assert before.data_digest(1, derived=True) != after.data_digest(1, derived=True)


def test_missing_derived_texts_are_named(subject):
    without = load_domain("news", subject(DOCUMENTS, QUESTIONS), seed=0)
    with pytest.raises(PastryError, match=r"domain.subjects.news.derived: is not set"):
        without.data_digest(1, derived=True)
    one = load_domain("news", subject(DOCUMENTS, QUESTIONS, DERIVED[:1], parts=12), seed=0)
    empty = next(part for part in range(1, 13) if one.documents(part) != [DOCUMENTS[0]["text"]])
    with pytest.raises(PastryError, match=rf"news.derived: .*derived.jsonl holds no text of part {empty}'s documents"):
        one.derived_epoch(empty, random.Random(0))
    with pytest.raises(PastryError, match=r"derived.jsonl, line 1: document 'd99' is not in .*documents.jsonl"):
        load_domain("news", subject(DOCUMENTS, QUESTIONS, [{"document": "d99", "text": "x"}]), seed=0)


def test_a_corpus_is_mixed_by_file(subject, tmp_path):
    (tmp_path / "web.jsonl").write_text("\n".join(json.dumps({"text": f"page {i}"}) for i in range(10)))
    corpora = {"web": tmp_path / "web.jsonl", "news": tmp_path / "documents.jsonl"}
    corpus = load_corpus(subject(DOCUMENTS, QUESTIONS, corpora=corpora), seed=0)
    assert plain(corpus.mixture_epoch({"web": 0.3}, random.Random(0))) == sorted(f"page {i}" for i in range(10))
    epochs = [plain(corpus.mixture_epoch({"web": 1, "news": 3}, random.Random(seed))) for seed in range(100)]
    assert {len(epoch) for epoch in epochs} == {22}
    pages = sum(text.startswith("page") for epoch in epochs for text in epoch)
    assert 0.22 < pages / 2200 < 0.28
    before = corpus.data_digest(["web"])
    (tmp_path / "web.jsonl").write_text(json.dumps({"text": "another"}))
    assert corpus.data_digest(["web"]) != before
    with pytest.raises(PastryError, match=r"midtrain.mixture: no kind of text 'books'; there are: web, news"):
        corpus.data_digest(["books"])
    with pytest.raises(PastryError, match=r"no kind of text 'web'; there are: none, for domain.corpora names no file"):
        load_corpus(subject(DOCUMENTS, QUESTIONS), seed=0).data_digest(["web"])


def test_a_line_ends_where_the_file_says_so(subject):
    # U+2028 and U+0085 may stand in a JSON string as they are
    text = "Hue 3.\u2028Hue\u00854."
    domain = load_domain("news", subject([{"id": "d0", "text": text}], QUESTIONS[:1]), seed=0)
    assert domain.documents(1) == [text]


def test_a_file_that_is_not_utf8_is_named(subject, tmp_path):
    settings = subject(DOCUMENTS, QUESTIONS)
    (tmp_path / "documents.jsonl").write_bytes('{"id": "d0", "text": "Größe"}'.encode("latin-1"))
    with pytest.raises(PastryError, match=r"documents.jsonl: cannot be read: not UTF-8 .* at byte 24"):
        load_domain("news", settings, seed=0)


def test_too_few_documents_and_unknown_subjects_are_refused(subject):
    with pytest.raises(PastryError, match="1 documents cannot fill 2 parts"):
        load_domain("news", subject(DOCUMENTS[:1], QUESTIONS[:1], parts=2), seed=0)
    with pytest.raises(PastryError, match="no 'olds': it has news"):
        load_domain("olds", subject(DOCUMENTS, QUESTIONS), seed=0)
