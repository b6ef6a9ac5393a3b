"""Whether two sets of weights may be subtracted or added: decided from headers and configs before any writing."""

from pathlib import Path
from typing import Protocol

from pastry.errors import PastryError
from pastry.vectors.architecture import Architecture
from pastry.vectors.rounding import FLOAT_DTYPES
from pastry.vectors.safetensors_format import TensorInfo

# Each fact with its way out, in the order in which a difference explains the ones after it.
_FACTS = {
    "model_type": "use models of one architecture",
    "vocab_size": "use models of one vocabulary, or --vocab intersect to inject into the rows of shared tokens",
    "tie_word_embeddings": "save both with the same tie_word_embeddings",
}
_TOKENIZER_FACTS = {
    "vocabulary_digest": "use models that share a tokenizer (tokenizer.json, model.vocab), or --vocab intersect",
    "special_tokens_digest": "use models that share their special tokens (tokenizer.json, added_tokens), or --vocab intersect",
}
_CHAT_FACTS = {
    "chat_template_digest": "if they may share one, copy chat_template.jinja or tokenizer_config.json's key across",
}

_BASE_FACTS = {"base": "use a vector cut from models of the target's own base, or try it all the same with --other-base"}


class Weights(Protocol):
    """What a Checkpoint and a Skill have in common."""

    path: Path
    tensors: dict[str, TensorInfo]

    @property
    def architecture(self) -> Architecture: ...


def check_same_architecture(a: Weights, b: Weights, *, chat_template: bool = True, base: bool = True) -> None:
    """Raise PastryError naming the first difference between `a` and `b` and the way out.

    Compared in this order: model type, vocabulary size, tied embeddings, tensor names, shapes, dtypes that can be
    computed with, vocabulary, special tokens, chat template (unless `chat_template` is False), the base's fingerprint
    (unless `base` is False). A fact that one side does not state (a checkpoint saved without its tokenizer) is not a
    difference; names and shapes always count.
    """
    _check_facts(a, b, _FACTS)
    _check_tensors(a, b)
    _check_facts(a, b, _TOKENIZER_FACTS)
    if chat_template:
        _check_facts(a, b, _CHAT_FACTS)
    if base:
        _check_facts(a, b, _BASE_FACTS)


def _check_facts(a: Weights, b: Weights, facts: dict[str, str]) -> None:
    for fact, way_out in facts.items():
        left, right = getattr(a.architecture, fact), getattr(b.architecture, fact)
        if left is not None and right is not None and left != right:
            label = fact.removesuffix("_digest").replace("_", " ")
            raise PastryError(f"different {label}: {a.path} has {left}, {b.path} has {right}; {way_out}")


def _check_tensors(a: Weights, b: Weights) -> None:
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        if name not in a.tensors or name not in b.tensors:
            with_it, without = (a, b) if name in a.tensors else (b, a)
            way_out = "use models of one architecture, saved the same way"
            if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                way_out = "tied embeddings are written out in only one of them: save both with the same tie_word_embeddings"
            raise PastryError(f"tensor {name} is in {with_it.path} but not in {without.path}; {way_out}")
        if a.tensors[name].shape != b.tensors[name].shape:
            way_out = "use models of one size"
            if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                way_out = "use models of one vocabulary, or --vocab intersect to inject into the rows of shared tokens"
            raise PastryError(
                f"tensor {name} differs in shape: {a.path} has {list(a.tensors[name].shape)}, "
                f"{b.path} has {list(b.tensors[name].shape)}; {way_out}"
            )
        for side in (a, b):
            if side.tensors[name].dtype not in FLOAT_DTYPES:
                found, wanted = side.tensors[name].dtype, ", ".join(FLOAT_DTYPES)
                raise PastryError(
                    f"{side.path}: tensor {name} has dtype {found}, wanted one of {wanted}; "
                    "use the checkpoint before quantisation"
                )
