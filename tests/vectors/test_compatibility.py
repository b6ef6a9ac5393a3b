import json

import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.algebra.combine import combine
from pastry.vectors.architecture import record_base
from pastry.vectors.checkpoint import Checkpoint, checkpoint_fingerprint
from pastry.vectors.compatibility import check_same_architecture
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from tests.vectors.conftest import TOKENIZER, edit_json, random_tensors


def without(name):
    return {key: tensor for key, tensor in random_tensors(0).items() if key != name}


def wider():
    return {**random_tensors(0), "model.norm.weight": torch.ones(17)}


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (
            None,
            {"model_type": "qwen2"},
            "different model type: .*a has llama, .*b has qwen2; use models of one architecture",
        ),
        (None, {"vocab_size": 33}, "different vocab size: .*32.*33; .*--vocab intersect"),
        (None, {"tie_word_embeddings": True}, "different tie word embeddings"),
        (
            without("model.norm.weight"),
            {},
            "tensor model.norm.weight is in .*a but not in .*b; use models of one architecture",
        ),
        (
            without("lm_head.weight"),
            {},
            "tensor lm_head.weight is in .*a but not in .*b; tied embeddings .* save both with the same",
        ),
        ({**random_tensors(0), "extra": torch.ones(1)}, {}, "tensor extra is in .*b but not in .*a"),
        (wider(), {}, r"tensor model.norm.weight differs in shape: .*a has \[16\], .*b has \[17\]"),
    ],
)
def test_first_difference_is_named_from_either_side(save, tensors, config, message):
    a, b = save("a", random_tensors(0)), save("b", tensors or random_tensors(0))
    edit_json(b / "config.json", **config)
    with pytest.raises(PastryError, match=message):
        check_same_architecture(Checkpoint(a), Checkpoint(b))
    with pytest.raises(PastryError):
        check_same_architecture(Checkpoint(b), Checkpoint(a))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer.json",
            json.dumps({**TOKENIZER, "model": {"vocab": {"a": 1, "b": 0}}}),
            "different vocabulary: .*share a tokenizer",
        ),
        ("tokenizer.json", json.dumps({**TOKENIZER, "added_tokens": []}), "different special tokens"),
        ("chat_template.jinja", "{{ other }}", "different chat template: .*copy chat_template.jinja"),
        ("tokenizer.json", "{}", "tokenizer.json: found no model.vocab"),
        ("config.json", "{", "config.json: not valid JSON"),
        ("config.json", '{"vocab_size": "many"}', "config.json: vocab_size: Input should be a valid integer"),
    ],
)
def test_tokenizer_and_config_files(save, file, content, message):
    a, b = save("a", random_tensors(0)), save("b", random_tensors(0))
    check_same_architecture(Checkpoint(a), Checkpoint(b))
    (b / file).write_text(content)
    with pytest.raises(PastryError, match=message):
        check_same_architecture(Checkpoint(a), Checkpoint(b))


def test_what_is_no_difference(save):
    a, b = save("a", random_tensors(0)), save("b", random_tensors(1), torch.bfloat16, max_shard_bytes=500)
    # The same vocabulary in another order, and the same template in the other place where it may be.
    (b / "tokenizer.json").write_text(json.dumps({**TOKENIZER, "model": {"vocab": {"b": 1, "a": 0}}}))
    (b / "chat_template.jinja").unlink()
    (b / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check_same_architecture(Checkpoint(a), Checkpoint(b))
    (b / "tokenizer_config.json").unlink()
    with pytest.raises(PastryError, match="different chat template"):
        check_same_architecture(Checkpoint(a), Checkpoint(b))
    check_same_architecture(Checkpoint(a), Checkpoint(b), chat_template=False)
    (b / "tokenizer.json").unlink()
    check_same_architecture(Checkpoint(a), Checkpoint(b))


def test_dtype_that_cannot_be_computed_with(save):
    a, b = save("a", random_tensors(0)), save("b", random_tensors(0), torch.float8_e4m3fn)
    with pytest.raises(
        PastryError, match=r"b: tensor lm_head.weight has dtype F8_E4M3, wanted one of float32.*before quantisation"
    ):
        check_same_architecture(Checkpoint(a), Checkpoint(b))


def test_missing_config(save):
    a, b = save("a", random_tensors(0)), save("b", random_tensors(0))
    (b / "config.json").unlink()
    with pytest.raises(PastryError, match=r"config.json: no such file"):
        check_same_architecture(Checkpoint(a), Checkpoint(b))


def test_a_vector_belongs_to_models_of_one_base(save, tmp_path):
    start, target = save("start", random_tensors(0)), save("target", random_tensors(2))
    base = save("base", random_tensors(5))
    record_base(start, checkpoint_fingerprint(base))
    extract(save("end", random_tensors(1)), start, tmp_path / "v", name="v", base=base)
    inject(target, [(tmp_path / "v", 1.0)], tmp_path / "unknown")  # whose base is not recorded
    record_base(target, checkpoint_fingerprint(base))
    inject(target, [(tmp_path / "v", 1.0)], tmp_path / "same")
    assert Checkpoint(tmp_path / "same").architecture.base == checkpoint_fingerprint(base)
    record_base(target, checkpoint_fingerprint(start))
    with pytest.raises(PastryError, match=r"different base: .*blake3.*--other-base"):
        inject(target, [(tmp_path / "v", 1.0)], tmp_path / "out")
    inject(target, [(tmp_path / "v", 1.0)], tmp_path / "out", other_base=True)
    with pytest.raises(PastryError, match=r"target: its fingerprint is blake3.* was trained from blake3"):
        extract(tmp_path / "end", start, tmp_path / "w", name="w", base=target)
    assert not (tmp_path / "w").exists()


def test_dry_runs_check_and_write_nothing(save, tmp_path):
    start, end = save("start", random_tensors(0)), save("end", random_tensors(1))
    assert extract(end, start, tmp_path / "v", name="v", dry_run=True) is None
    extract(end, start, tmp_path / "v", name="v")
    before = sorted(tmp_path.rglob("*"))
    assert inject(start, [(tmp_path / "v", 1.0)], tmp_path / "out", dry_run=True) is None
    assert combine([(tmp_path / "v", 1.0)], tmp_path / "out", name="c", method="mean", dry_run=True) is None
    with pytest.raises(PastryError, match="v already exists"):
        inject(start, [(tmp_path / "v", 1.0)], tmp_path / "v", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
