"""Texts as packed, labelled rows of tokens."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pastry.config import LabSettings
from pastry.domains import load_corpus
from pastry.domains.base import Text
from pastry.training.data import IGNORED, chunks, packed_epochs, tokenized

LAB = LabSettings(kind="lab", entities=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    load_corpus(LAB, 0).save_tokenizer(directory)
    return AutoTokenizer.from_pretrained(directory)


@st.composite
def splits(draw):
    """Tokens that tell where they stand, some of which the loss skips; a length and an overlap."""
    ids = list(range(draw(st.integers(2, 60))))
    labels = [token if draw(st.booleans()) else IGNORED for token in ids]
    length = draw(st.integers(1, 20))
    return {"input_ids": ids, "labels": labels}, length, draw(st.integers(0, length - 1))


@given(splits())
def test_a_split_text_is_whole_and_counted_once(split):
    row, length, overlap = split
    made = list(chunks(row, length, overlap))
    whole = made[0]["input_ids"] + [token for chunk in made[1:] for token in chunk["input_ids"][overlap:]]
    assert whole == row["input_ids"]
    counted = [token for chunk in made for token in chunk["labels"] if token != IGNORED]
    # Nothing can be predicted from nothing: the text's first token, and without overlap every chunk's.
    first = {0} if overlap else {chunk["input_ids"][0] for chunk in made}
    assert counted == [token for token in row["labels"] if token != IGNORED and token not in first]


@given(splits())
def test_a_chunk_is_no_longer_than_a_row_and_begins_with_the_end_of_the_one_before(split):
    row, length, overlap = split
    made = list(chunks(row, length, overlap))
    for chunk in made:
        assert len(chunk["labels"]) == len(chunk["input_ids"]) <= length and chunk["labels"][0] == IGNORED
        labelled = zip(chunk["input_ids"], chunk["labels"], strict=True)
        assert all(label in (token, IGNORED) for token, label in labelled)
    for before, after in itertools.pairwise(made):
        assert len(before["input_ids"]) == length and len(after["input_ids"]) > overlap
        assert after["input_ids"][:overlap] == before["input_ids"][length - overlap :]
        assert after["labels"][:overlap] == [IGNORED] * overlap


def words(rng, count):
    return Text.plain("<bos> " + " ".join(rng.choice(["the", "of", "is", "has", "a"]) for _ in range(count)))


def packed(tokenizer, draw, **settings):
    return packed_epochs(draw, tokenizer, **{"rows": None, "epochs": 1, "seed": 0} | settings)


@pytest.mark.parametrize("overlap", [0, 1, 5])
def test_packed_rows_hold_whole_chunks_and_every_token_once(tokenizer, overlap):
    texts = [words(random.Random(size), size) for size in (3, 8, 14, 15, 16, 31, 80, 200)]
    rows = packed(tokenizer, lambda rng: texts, length=16, overlap=overlap)
    wanted = [chunk for row in tokenized(texts, tokenizer) for chunk in chunks(row, 16, overlap)]
    found = []
    for row in rows:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= 16
        start = 0
        for size in row["seq_lengths"]:
            found.append({key: row[key][start : start + size] for key in ("input_ids", "labels")})
            start += size
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    counted = sum(label != IGNORED for row in rows for label in row["labels"])
    total = sum(len(row["input_ids"]) for row in tokenized(texts, tokenizer))
    assert total - counted == (len(texts) if overlap else len(wanted))


def test_rows_are_filled_best_fit_decreasing(tokenizer):
    # with <bos> and <eos>: 10, 9, 6, 6, 1 + 2 tokens: 10 + 6, 9 + 6, 3 in place of 10 + 3, 9 + 6, 6
    texts = [words(random.Random(0), size) for size in (1, 8, 4, 7, 4)]
    rows = packed(tokenizer, lambda rng: texts, length=16)
    assert sorted(rows["seq_lengths"]) == [[3], [9, 6], [10, 6]]


def test_so_many_rows_or_so_many_epochs(tokenizer):
    drawn = []

    def draw(rng):
        drawn.append(rng.random())
        return [words(rng, 10) for _ in range(4)]

    assert len(packed(tokenizer, draw, length=12, rows=10, epochs=None)) == 10
    assert len(drawn) == len(set(drawn)) == 3
    drawn.clear()
    assert len(packed(tokenizer, draw, length=12, epochs=2)) == 8
    assert len(drawn) == 2


def test_the_loss_skips_what_a_text_says_it_skips(tokenizer):
    row = tokenized([Text((("<bos> what", False), (" is the", True), (" of", False)))], tokenizer)[0]
    of, eos = tokenizer.convert_tokens_to_ids(["of", "<eos>"])
    assert row["input_ids"][3:] == [*tokenizer.convert_tokens_to_ids(["the"]), of, eos]
    assert row["labels"] == [IGNORED, IGNORED, *row["input_ids"][2:4], IGNORED, eos]
