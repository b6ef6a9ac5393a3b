"""From a domain's texts to packed, labelled token rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from pastry.domains.base import Text

IGNORED = -100


def tokenized(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Token ids and labels of each text, ended by the end-of-sequence token; what the loss skips has the label -100."""
    flat = [segment for text in texts for segment, _ in text.segments]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows, eos = [], tokenizer.eos_token_id
    for text in texts:
        ids, labels = [], []
        for _, counts in text.segments:
            segment = next(encoded)
            ids += segment
            labels += segment if counts else [IGNORED] * len(segment)
        if ids[-1] != eos:
            ids.append(eos)
            labels.append(eos)
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def chunks(row: dict[str, list[int]], length: int, overlap: int) -> Iterator[dict[str, list[int]]]:
    """A text's tokens in pieces of at most `length`; each but the first begins with the last `overlap` of the one before.

    The repeated tokens are context, labelled -100: the loss counts every token of the text once, except those that have
    nothing before them to be predicted from, which are the text's first and, without overlap, every chunk's first.
    """
    ids, labels = row["input_ids"], row["labels"]
    for start in range(0, max(1, len(ids) - overlap), length - overlap):
        # In a packed row the token before a chunk belongs to another text, so that the first never counts.
        context = max(1, overlap) if start else 1
        counted = labels[start + context : start + length]
        yield {"input_ids": ids[start : start + length], "labels": [IGNORED] * context + counted}


def packed_epochs(
    epoch: Callable[[random.Random], list[Text]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    overlap: int = 0,
    rows: int | None,
    epochs: int | None,
    seed: int,
) -> Dataset:
    """Draw epochs of texts and pack them, best fit decreasing, into rows of at most `length` tokens.

    Either so many `epochs`, or as many as fill `rows` rows. Columns: input_ids, labels, seq_lengths.
    A text longer than `length` is split into `chunks`, of which each is packed like a text of its own.
    """
    rng = random.Random(seed)
    pieces: list[dict] = []
    tokens = drawn = 0
    while drawn < epochs if epochs else tokens < rows * length:
        new = [piece for row in tokenized(epoch(rng), tokenizer) for piece in chunks(row, length, overlap)]
        pieces += new
        tokens += sum(len(piece["input_ids"]) for piece in new)
        drawn += 1
    dataset = pack_dataset(Dataset.from_list(pieces), length, strategy="bfd")
    return dataset.select(range(rows)) if rows else dataset
