"""The lab's word-level tokenizer: one token a word, made from the world's vocabulary."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}

# One user turn, one assistant turn: what the model was trained on. Earlier turns and system messages have no tokens here.
CHAT_TEMPLATE = "<bos> <q> {{ messages[-1]['content'] }} <a>"


def save_tokenizer(words: list[str], directory: Path) -> None:
    """Write the tokenizer of a vocabulary (`words` in token order, special tokens not among them) into `directory`.

    Splits on white space and pads on the left (generation needs the prompt's end aligned).
    """
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **SPECIAL
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
