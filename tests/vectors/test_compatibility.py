import json

import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.compatibility import check_same_architecture
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
