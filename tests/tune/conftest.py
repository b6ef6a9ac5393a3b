"""A search stage without training: a random target, random vectors, and questions that one of the vectors answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pastry.config import LabSettings, PastConfig
from pastry.domains import load_corpus
from pastry.engine.transformers_engine import TransformersEngine
from pastry.pipeline.plan import plan
from pastry.pipeline.stage import Context
from pastry.registry.tracking import Tracker
from pastry.vectors.extract import extract

NAMES = ("ship", "moon", "tree")
ANSWERS = ("ship", 1.0)
"""The vector and the λ that answer every question: so the search must find them."""
TOKENS = 4
DOCUMENTS = 24


def make_models(place: Path) -> None:
    """`target/model`, and for each name `NAME/skill`; `questions.jsonl` with the answers of target + 1.0 · ship."""
    load_corpus(LabSettings(kind="lab", entities=6), 0).save_tokenizer(place / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    tokens = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), initializer_range=0.3, **shape, **tokens)
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(config)
    _save(target, tokenizer, place / "target" / "model")
    start = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for name in NAMES:
        target.load_state_dict({key: value + 0.15 * torch.randn_like(value) for key, value in start.items()})
        _save(target, tokenizer, place / name / "model")
        extract(place / name / "model", place / "target" / "model", place / name / "skill", name=name)
    _write_domain(place, tokenizer)


def _save(model, tokenizer, place: Path) -> None:
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _write_domain(place: Path, tokenizer) -> None:
    engine = TransformersEngine(place / "target" / "model", {name: place / name / "skill" for name in NAMES})
    engine.attach(dict([ANSWERS]))
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and len(word) > 2]
    prompts = [f"{a} {b} {c}" for a, b, c in zip(words, words[7:], words[23:], strict=False)][: 6 * DOCUMENTS]
    answers = engine.generate(prompts, max_new_tokens=TOKENS)
    rows = [
        {"document": f"d{index % DOCUMENTS}", "question": prompt, "answer": answer.text}
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if any(part.isalnum() for part in answer.text.split())
    ]
    documents = [{"id": f"d{index}", "text": prompt} for index, prompt in enumerate(prompts[:DOCUMENTS])]
    for name, lines in (("questions", rows), ("documents", documents), ("known", rows[::5])):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_config(place: Path, **search) -> PastConfig:
    """A run with two sources whose search has these settings."""
    subject = {"documents": str(place / "documents.jsonl"), "questions": str(place / "questions.jsonl")}
    text = {"steps": 1, "batch_rows": 2}
    return PastConfig.model_validate(
        {
            "name": "search",
            "storage": str(place / "runs"),
            "base": str(place / "target" / "model"),
            "domain": {"kind": "files", "subjects": dict.fromkeys((*NAMES, "town"), subject), "prompt": "{question}"},
            "sources": ["ship", "moon"],
            "target": "town",
            "sft": text,
            "rl": {},
            "search": {"retention_file": str(place / "known.jsonl"), "retention_questions": 8, **search},
            "ablation": {},
            "generation": {"max_new_tokens": TOKENS},
            "resources": {"workers": 2},
        }
    )


def stage_context(
    config: PastConfig, place: Path, name: str, tracker: Tracker, out: Path, say: Callable[[str], None] = print, **inputs: Path
) -> Context:
    """What the runner would give a stage of this run whose inputs are at `place`."""
    stage = next(stage for stage in plan(config, 2) if stage.name == name)
    at = {role: place / role.removeprefix("skill:") for role in stage.inputs if role != "search"} | inputs
    work = out.with_name(f"{out.name}-work")
    run = tracker.stage(name, stage.kind, {}, lambda numbers: None, work)
    out.mkdir(parents=True, exist_ok=True)
    return Context(stage, config, at, out, work, run, say)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("search")
    make_models(made)
    return made
