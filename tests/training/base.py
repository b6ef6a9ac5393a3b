"""A tiny lab model that has learned how answers look, though not what is true: trained in this process, in seconds."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from pastry.config import LabSettings
from pastry.domains import load_corpus
from pastry.training.data import packed_epochs
from pastry.training.trl_adapter import PackedRowsCollator

STEPS, ROWS = 150, 12


def make_base(out: Path, lab: LabSettings, seed: int) -> Path:
    """Write the model and its tokenizer to `out`."""
    torch.manual_seed(seed)
    corpus = load_corpus(lab, seed)
    corpus.save_tokenizer(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**shape, **ids, vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    rows = packed_epochs(corpus.pretraining_epoch, tokenizer, length=64, rows=STEPS * ROWS, epochs=None, seed=seed)
    collate = PackedRowsCollator(pad_token_id=tokenizer.pad_token_id, return_position_ids=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    for step in range(STEPS):
        batch = collate([rows[index] for index in order[step * ROWS : (step + 1) * ROWS]])
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    return out
