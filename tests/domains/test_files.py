"""One's own documents and questions."""

import json
import random

import pytest

from pastry.config import FilesSettings
from pastry.domains import load_domain
from pastry.errors import PastryError


@pytest.fixture
def subject(tmp_path):
    """Write a subject's files; gives its settings."""

    def write(documents, questions, **settings):
        for name, rows in (("documents", documents), ("questions", questions)):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        files = {name: tmp_path / f"{name}.jsonl" for name in ("documents", "questions")}
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


def test_too_few_documents_and_unknown_subjects_are_refused(subject):
    with pytest.raises(PastryError, match="1 documents cannot fill 2 parts"):
        load_domain("news", subject(DOCUMENTS[:1], QUESTIONS[:1], parts=2), seed=0)
    with pytest.raises(PastryError, match="no 'olds': it has news"):
        load_domain("olds", subject(DOCUMENTS, QUESTIONS), seed=0)
