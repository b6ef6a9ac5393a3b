"""From a domain's texts to packed, labelled token rows."""

from __future__ import annotations

import random
from collections.abc import Callable

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import pack_dataset

from pastry.domains.base import Text

IGNORED = -100


def tokenized(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Token ids and labels of each text, ended by the end-of-sequence token; what the loss skips has the label -100."""
    flat = [segment for text in texts for segment, _ in text.segments]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows = []
    for text in texts:
        ids, labels = [], []
        for _, counts in text.segments:
            segment = next(encoded)
            ids += segment
            labels += segment if counts else [IGNORED] * len(segment)
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
        labels[0] = IGNORED  # in a packed row the token before it belongs to another text
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def packed_epochs(
    epoch: Callable[[random.Random], list[Text]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    rows: int | None,
    epochs: int | None,
    seed: int,
) -> Dataset:
    """Draw epochs of texts and pack them into rows of at most `length` tokens.

    Either so many `epochs`, or as many as fill `rows` rows. Columns: input_ids, labels, seq_lengths.
    A text longer than `length` is split over several rows, none of its tokens is lost.
    """
    rng = random.Random(seed)
    texts: list[dict] = []
    tokens = drawn = 0
    while drawn < epochs if epochs else tokens < rows * length:
        new = tokenized(epoch(rng), tokenizer)
        texts += new
        tokens += sum(len(row["input_ids"]) for row in new)
        drawn += 1
    dataset = pack_dataset(Dataset.from_list(texts), length, strategy="bfd_split")
    return dataset.select(range(rows)) if rows else dataset
