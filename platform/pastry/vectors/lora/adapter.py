"""A PEFT LoRA adapter on disk: which layers it changes, by what factors and at what scale.

A LoRA adapter changes a weight by s·B·A with s = α/r (Hu et al. 2021, arXiv 2106.09685, section 4.1), or α/√r
(rank-stabilised, Kalajdzievski 2023, arXiv 2312.03732). Files and names are PEFT's.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from pydantic import BaseModel, FiniteFloat, PositiveInt, field_validator

from pastry.errors import PastryError
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.files import parse_model, read_json
from pastry.vectors.lora.factored import Term
from pastry.vectors.rounding import Scratch

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_FACTOR = re.compile(re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
MERGE = "merge the adapters into their base (PEFT's merge_and_unload), save both models and extract from the checkpoints"
# Each makes the trained model something else than W + s·B·A of linear layers.
_REFUSED = {
    "use_dora": "DoRA also rescales the weights' columns",
    "lora_bias": "B has a bias, which is no low-rank change of a weight",
    "modules_to_save": "whole modules were trained beside the factors",
    "trainable_token_indices": "embedding rows were trained beside the factors",
    "fan_in_fan_out": "the layers store their weights transposed (Conv1D)",
    "target_parameters": "the factors belong to parameters that are no linear layers",
    "layer_replication": "the adapter's model has more layers than its base",
    "alora_invocation_tokens": "the adapter is active only after certain tokens",
    "use_qalora": "QALoRA pools the input, its B·A is no change of the weight",
    "use_bdlora": "BD-LoRA's factors are block-diagonal",
    "arrow_config": "Arrow chooses between adapters for each token",
    "kasa_config": "KaSA has a diagonal between the factors and changes the base's weights",
    "monteclora_config": "MonteCLoRA's factors are random variables",
}
# These start from zero change of the base; other named ones (PiSSA, OLoRA, CorDA, LoftQ, …) alter the base's own weights.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class _Config(BaseModel):
    """What of adapter_config.json decides the change of the weights."""

    r: PositiveInt
    lora_alpha: FiniteFloat
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    use_rslora: bool = False
    base_model_name_or_path: str | None = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _keys_are_regular_expressions(cls, patterns: dict | None) -> dict | None:
        for key in patterns or {}:
            try:
                re.compile(key)
            except re.error as error:
                raise ValueError(f"{key!r} is not a regular expression ({error})") from error
        return patterns


class Adapter(TensorDirectory):
    """A PEFT LoRA adapter directory, opened lazily: `modules` maps each changed layer to its (rank, scale).

    Raises PastryError for anything but plain LoRA on linear layers, naming the setting or the tensor.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        document = read_json(self.path / CONFIG_FILE)
        self._refuse(document)
        self.config = parse_model(_Config, document, str(self.path / CONFIG_FILE))
        sides: dict[str, set[str]] = {}
        for name, info in self.tensors.items():
            match = _FACTOR.fullmatch(name)
            if not match or len(info.shape) != 2:
                raise PastryError(
                    f"{info.file}: tensor {name} {list(info.shape)} is no LoRA factor of a linear layer "
                    f"(wanted {PREFIX}MODULE.lora_A.weight or .lora_B.weight with two dimensions); {MERGE}"
                )
            sides.setdefault(match["module"], set()).add(match["side"])
        for module, found in sorted(sides.items()):
            if found != {"A", "B"}:
                raise PastryError(f"{self.path}: {module} has only lora_{found.pop()}, wanted both; save the adapter again")
        self.modules: dict[str, Term] = {module: self._term(module) for module in sorted(sides)}

    def shape(self, module: str) -> tuple[int, int]:
        """[out, in] of the layer's weight."""
        return self.tensors[factor_name(module, "B")].shape[0], self.tensors[factor_name(module, "A")].shape[1]

    def factor(self, module: str, side: str) -> np.ndarray:
        """A [rank, in] or B [out, rank] in float32. NaN or Inf is a PastryError."""
        info = self.tensors[factor_name(module, side)]
        return self.widened_block(info.name, 0, info.elements, Scratch())[0].reshape(info.shape)

    def _refuse(self, document: dict) -> None:
        path = self.path / CONFIG_FILE
        if document.get("peft_type") != "LORA":
            raise PastryError(f"{path}: peft_type is {document.get('peft_type')!r}, wanted 'LORA'; {MERGE}")
        if document.get("bias", "none") != "none":
            raise PastryError(f"{path}: bias is {document['bias']!r}, wanted 'none': biases were trained as well; {MERGE}")
        for key, why in _REFUSED.items():
            if document.get(key):
                raise PastryError(f"{path}: {key} is {document[key]!r}, wanted none: {why}; {MERGE}")
        start = document.get("init_lora_weights")
        if start not in _PLAIN_STARTS:
            raise PastryError(
                f"{path}: init_lora_weights is {start!r}, which changes the base's own weights; save the adapter again with "
                "save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge both ends"
            )

    def _term(self, module: str) -> Term:
        rank = _pattern(self.config.rank_pattern, module, self.config.r)
        alpha = _pattern(self.config.alpha_pattern, module, self.config.lora_alpha)
        a, b = self.tensors[factor_name(module, "A")], self.tensors[factor_name(module, "B")]
        if not a.shape[0] == b.shape[1] == rank:
            raise PastryError(
                f"{self.path}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, "
                f"{CONFIG_FILE} says rank {rank}; save the adapter again"
            )
        return rank, alpha / (math.sqrt(rank) if self.config.use_rslora else rank)


def is_adapter(path: Path) -> bool:
    """Whether the directory holds a PEFT adapter."""
    return (Path(path) / CONFIG_FILE).is_file()


def factor_name(module: str, side: str) -> str:
    """Under which side "A" or "B" of a layer's factors is stored."""
    return f"{PREFIX}{module}.lora_{side}.weight"


def _pattern(patterns: dict | None, module: str, default: float) -> float:
    # PEFT's rule: the first key that matches the end of the module's name as a regular expression.
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
