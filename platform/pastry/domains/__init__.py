"""Domains by name. A new one is a new file or folder here and a line in `KINDS`."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from typing import Literal

from pastry.domains.base import Corpus, Domain, Text

Texts = Literal["pretraining", "mixture", "documents", "derived", "answers"]
"""What a stage reads: pre-training's texts, mid-training's mixture, or of a domain its documents, the texts derived from them
(second SFT stage), or its questions with short answers."""

KINDS = {"lab": "pastry.domains.lab:LabDomain", "files": "pastry.domains.files:FilesDomain"}
CORPORA = {"lab": "pastry.domains.lab:LabCorpus", "files": "pastry.domains.files:FilesCorpus"}


def _named(path: str):
    module, name = path.split(":")
    return getattr(import_module(module), name)


def load_domain(name: str, settings, seed: int) -> Domain:
    """The domain `name` of the kind that `settings.kind` says. Raises PastryError for an unknown name."""
    return _named(KINDS[settings.kind])(name, settings, seed)


def load_corpus(settings, seed: int) -> Corpus:
    """The texts a base is mid-trained on; a `PretrainingCorpus` where one can also be made from scratch on them."""
    return _named(CORPORA[settings.kind])(settings, seed)


def load_epoch(
    texts: Texts, settings, seed: int, *, name: str | None = None, part: int = 1, mixture: dict[str, float] | None = None
) -> Callable[[random.Random], list[Text]]:
    """What draws an epoch of a stage's texts: of the corpus (with the `mixture`'s shares), or of a part of domain `name`."""
    if texts == "pretraining":
        return load_corpus(settings, seed).pretraining_epoch
    if texts == "mixture":
        corpus = load_corpus(settings, seed)
        return lambda rng: corpus.mixture_epoch(mixture, rng)
    domain = load_domain(name, settings, seed)
    draw = {"documents": domain.sft_epoch, "derived": domain.derived_epoch, "answers": domain.answers_epoch}[texts]
    return lambda rng: draw(part, rng)
