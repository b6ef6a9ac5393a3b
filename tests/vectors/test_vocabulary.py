import json

import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from tests.vectors.conftest import SHAPES, edit_json, load, random_tensors

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
# Of 32 rows of the skill 5 are tokens; the target has 7 tokens in 40 rows: b and c changed places, <eos> is elsewhere.
SKILL_TOKENS = {"a": 0, "b": 1, "c": 2, "old": 3}
TARGET_TOKENS = {"a": 0, "b": 2, "c": 1, "new": 3, "far": 39}
SKILL_EOS, TARGET_EOS = 4, 20


def tokenizer(path, vocabulary, eos):
    added = [{"id": eos, "content": "<eos>", "special": True}]
    (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    return path


@pytest.fixture
def skill(save, tmp_path):
    start = tokenizer(save("start", random_tensors(0)), SKILL_TOKENS, SKILL_EOS)
    end = tokenizer(save("end", random_tensors(1)), SKILL_TOKENS, SKILL_EOS)
    extract(end, start, tmp_path / "v", name="v")
    return tmp_path / "v"


@pytest.fixture
def target(save):
    shapes = {name: (40, 16) if name in EMBEDDINGS else shape for name, shape in SHAPES.items()}
    path = tokenizer(save("target", random_tensors(2, shapes=shapes)), TARGET_TOKENS, TARGET_EOS)
    edit_json(path / "config.json", vocab_size=40)
    return path


def test_another_vocabulary_is_refused_with_the_way_out(skill, target, tmp_path):
    with pytest.raises(PastryError, match=r"different vocab size.*--vocab intersect"):
        inject(target, [(skill, 1.0)], tmp_path / "out")
    edit_json(target / "config.json", vocab_size=32)
    with pytest.raises(PastryError, match=r"differs in shape.*--vocab intersect"):
        inject(target, [(skill, 1.0)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_of_shared_tokens_and_no_others(skill, target, tmp_path):
    report = inject(target, [(skill, 0.5)], tmp_path / "out", vocab="intersect")
    theta, v, out = load(target), load(skill), load(tmp_path / "out")
    rows = {0: 0, 1: 2, 2: 1, TARGET_EOS: SKILL_EOS}
    for name in theta:
        wanted = theta[name].clone()
        if name in EMBEDDINGS:
            for row, source in rows.items():
                wanted[row] += 0.5 * v[name][source]
        else:
            wanted += 0.5 * v[name]
        assert torch.equal(out[name], wanted), name
    shared = report.skills[0].shared_rows
    assert (shared.shared, shared.moved, shared.untouched, shared.dropped) == (4, 3, 36, 28)
    assert report.realised_ratio == pytest.approx(1.0, abs=1e-6)


def test_same_size_but_other_tokens(save, skill, tmp_path):
    path = tokenizer(save("same-size", random_tensors(2)), {"c": 0, "b": 1, "a": 2}, SKILL_EOS)
    with pytest.raises(PastryError, match=r"different vocabulary.*--vocab intersect"):
        inject(path, [(skill, 1.0)], tmp_path / "out")
    shared = inject(path, [(skill, 1.0)], tmp_path / "out", vocab="intersect").skills[0].shared_rows
    assert (shared.shared, shared.moved) == (4, 2)


def test_what_intersect_needs(skill, target, tmp_path):
    (skill / "tokenizer.json").unlink()
    with pytest.raises(PastryError, match=r"v/tokenizer.json: no such file, and --vocab intersect needs"):
        inject(target, [(skill, 1.0)], tmp_path / "out", vocab="intersect")
    for broken, message in [
        ({"model": {"vocab": [1]}}, "found no model.vocab"),
        ({"model": {"vocab": {"a": -1}}}, "not a natural number"),
        ({}, "found no model.vocab"),
    ]:
        (skill / "tokenizer.json").write_text(json.dumps(broken))
        with pytest.raises(PastryError, match=message):
            inject(target, [(skill, 1.0)], tmp_path / "out", vocab="intersect")
    with pytest.raises(PastryError, match="vocab 'union' is unknown; wanted same, intersect"):
        inject(target, [(skill, 1.0)], tmp_path / "out", vocab="union")


def test_a_damaged_embedding_is_found_before_anything_is_written(skill, target, tmp_path):
    file = skill / "skill.safetensors"
    content = bytearray(file.read_bytes())
    content[content.index(b"}}") + 200] ^= 1  # lm_head comes first
    file.write_bytes(content)
    with pytest.raises(PastryError, match=r"tensor lm_head.weight has digest"):
        inject(target, [(skill, 1.0)], tmp_path / "out", vocab="intersect")
