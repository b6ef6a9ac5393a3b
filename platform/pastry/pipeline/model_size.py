"""How large a run's model is, from headers and configs alone: what memory, disk and time are estimated from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from tokenizers import Tokenizer

from pastry.config import PastConfig
from pastry.domains import load_corpus
from pastry.errors import PastryError
from pastry.registry.resolve import REGISTERED, local_path
from pastry.vectors.checkpoint import Checkpoint
from pastry.vectors.files import read_json

SECONDS = 3.0
"""For Hugging Face to answer: an estimate is not worth waiting longer."""
_QWEN = {"model_type": "qwen2", "num_hidden_layers": 28, "max_position_embeddings": 131072}
PUBLISHED: dict[str, dict[str, Any]] = {
    # The public config.json of the bases our configs name, for dry runs without a network.
    "Qwen/Qwen2.5-1.5B": _QWEN
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen/Qwen2.5-7B": _QWEN
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"vocab_size": 152064, "tie_word_embeddings": False},
}


@dataclass(frozen=True)
class ModelSize:
    """A decoder's parameters and the lengths of its axes."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int | None
    """The longest sequence it was made for (max_position_embeddings)."""
    known_from: str

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Name → (inputs, outputs) of a layer's matrices, in Llama's and Qwen2's names."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }


@dataclass(frozen=True)
class RunModel:
    """What can be known of a run's model before it starts; None with the reason in `unknown` otherwise."""

    size: ModelSize | None
    tokenizer: Tokenizer | None
    unknown: str | None = None


def run_model(config: PastConfig, storage: Path) -> RunModel:
    """The model that `config` trains: made from scratch, a directory, registered, in the Hugging Face cache or on the hub.

    Raises PastryError for a directory that is no checkpoint; whatever else cannot be found out is unknown, not an error.
    """
    if config.pretrain:
        with tempfile.TemporaryDirectory() as directory:
            load_corpus(config.domain, config.seed).save_tokenizer(Path(directory))
            tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
        shape = config.pretrain.model.model_dump() | {"vocab_size": tokenizer.get_vocab_size()}
        return RunModel(model_size(shape, decoder_parameters(shape), "pretrain.model"), tokenizer)
    base = config.base
    if base.startswith(REGISTERED):
        return _registered(base, config, storage)
    if Path(base).is_dir():
        return _local(Path(base), base)
    return _named(base)


def decoder_parameters(shape: dict[str, Any]) -> int:
    """Parameters of a Llama, or of a Qwen2 (whose q, k and v have biases), from its config.json."""
    size = model_size(shape, 0, "")
    embeddings = size.vocabulary * size.hidden * (1 if shape["tie_word_embeddings"] else 2)
    matrices = sum(inputs * outputs for inputs, outputs in size.linear_layers().values())
    biases = (size.heads + 2 * size.kv_heads) * size.head_size if shape["model_type"] == "qwen2" else 0
    return embeddings + size.layers * (matrices + biases + 2 * size.hidden) + size.hidden


def _local(path: Path, name: str) -> RunModel:
    checkpoint = Checkpoint(path)
    parameters = sum(info.elements for info in checkpoint.tensors.values())
    return RunModel(model_size(checkpoint.config, parameters, f"the files of {name}"), _tokenizer(path / "tokenizer.json"))


def _registered(uri: str, config: PastConfig, storage: Path) -> RunModel:
    from pastry.registry.tracking import tracking_uri  # MLflow takes seconds to import

    registry = tracking_uri(config.tracking, storage)
    if registry.startswith("sqlite:///") and not Path(registry.removeprefix("sqlite:///")).is_file():
        return RunModel(None, None, f"{uri}: no registry at {registry}")  # MLflow would make one, and a dry run writes nothing
    try:
        return _local(local_path(uri, registry), uri)
    except PastryError as error:
        return RunModel(None, None, str(error))


def _named(name: str) -> RunModel:
    """From the Hugging Face cache, our own table, or the hub."""
    try:
        cached = try_to_load_from_cache(name, "config.json")
        tokenizer = _tokenizer(try_to_load_from_cache(name, "tokenizer.json"))
        if not isinstance(cached, str) and name in PUBLISHED:
            return RunModel(model_size(PUBLISHED[name], decoder_parameters(PUBLISHED[name]), "its published config"), tokenizer)
        path = Path(cached if isinstance(cached, str) else hf_hub_download(name, "config.json", etag_timeout=SECONDS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        return RunModel(None, None, f"base '{name}' is neither here nor to be had from Hugging Face: {_first_line(error)}")
    shape = read_json(path)
    return RunModel(model_size(shape, _on_the_meta_device(shape), "its config.json"), tokenizer)


def _tokenizer(file: object) -> Tokenizer | None:
    # The cache answers None for what it does not know and an object of its own for what does not exist.
    return Tokenizer.from_file(str(file)) if isinstance(file, str | Path) and Path(file).is_file() else None


def _on_the_meta_device(shape: dict[str, Any]) -> int:
    """Exact for every architecture transformers knows; takes seconds, as it imports torch."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = dict(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(facts.pop("model_type"), **facts))
    return model.num_parameters()


def model_size(shape: dict[str, Any], parameters: int, known_from: str) -> ModelSize:
    # Multimodal configs keep the language model's numbers one level down.
    shape = shape.get("text_config") or shape
    heads = shape["num_attention_heads"]
    return ModelSize(
        parameters=parameters,
        hidden=shape["hidden_size"],
        layers=shape["num_hidden_layers"],
        heads=heads,
        kv_heads=shape.get("num_key_value_heads") or heads,
        head_size=shape.get("head_dim") or shape["hidden_size"] // heads,
        intermediate=shape["intermediate_size"],
        vocabulary=shape["vocab_size"],
        positions=shape.get("max_position_embeddings"),
        known_from=known_from,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


Tokens = Callable[[str], int]


def token_counter(tokenizer: Tokenizer | None) -> Tokens:
    """Tokens of a text; without a tokenizer a guess, four characters each (what English takes of Qwen's)."""
    if tokenizer is None:
        return lambda text: len(text) // 4
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
