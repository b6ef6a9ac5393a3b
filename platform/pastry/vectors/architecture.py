"""What must be equal before two sets of weights may be added: facts from config.json and the tokenizer's files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pastry.errors import PastryError
from pastry.vectors.files import parse_model, read_json, read_text, write_json

BASE_FILE = "pastry.json"
"""In a checkpoint's directory: {"base": the fingerprint of the base it was trained from}."""


class Architecture(BaseModel):
    """Facts that decide compatibility. None means: the checkpoint does not say."""

    model_config = ConfigDict(extra="forbid")

    model_type: str | None = None
    architectures: list[str] | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    tie_word_embeddings: bool | None = None
    vocabulary_digest: str | None = None
    special_tokens_digest: str | None = None
    chat_template_digest: str | None = None
    base: str | None = None
    """Fingerprint of the base: a skill vector belongs to models of the same one."""


def read_architecture(directory: Path, config: dict[str, Any]) -> Architecture:
    """Facts of the checkpoint in `directory` with the given config.json; raises PastryError on malformed files.

    The tokenizer's digests are sha256 of tokenizer.json's `model.vocab`, of its added tokens (id and text), and of the
    chat template ("" where there is none). All three are None where there is no tokenizer.json.
    """
    # Multimodal configs keep the language model's numbers one level down.
    text_config = config.get("text_config")
    facts = {**text_config, **config} if isinstance(text_config, dict) else config
    keys = ("model_type", "architectures", "vocab_size", "hidden_size", "tie_word_embeddings")
    stated = {key: facts[key] for key in keys if key in facts}
    base = {"base": read_json(directory / BASE_FILE).get("base")} if (directory / BASE_FILE).exists() else {}
    return parse_model(Architecture, {**stated, **_tokenizer_digests(directory), **base}, str(directory / "config.json"))


def record_base(directory: Path, base: str) -> None:
    """Write down that the checkpoint in `directory` was trained from the base with this fingerprint."""
    write_json(directory / BASE_FILE, {"base": base})


def _tokenizer_digests(directory: Path) -> dict[str, str]:
    path = directory / "tokenizer.json"
    if not path.exists():
        return {}
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        added = sorted((token["id"], token["content"]) for token in tokenizer.get("added_tokens") or [])
    except (KeyError, TypeError) as error:
        raise PastryError(f"{path}: found no model.vocab or malformed added_tokens ({error!r})") from error
    return {
        "vocabulary_digest": _digest(vocabulary),
        "special_tokens_digest": _digest(added),
        "chat_template_digest": _digest(_chat_template(directory)),
    }


def _chat_template(directory: Path) -> Any:
    # The same precedence as transformers: the file of its own wins over the key.
    template = directory / "chat_template.jinja"
    if template.exists():
        return read_text(template)
    config = directory / "tokenizer_config.json"
    return (read_json(config).get("chat_template") if config.exists() else None) or ""


def _digest(content: Any) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
