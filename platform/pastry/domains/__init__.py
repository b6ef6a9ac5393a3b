"""Domains by name. A new one is a new file or folder here and a line in `KINDS`."""

from __future__ import annotations

from importlib import import_module

from pastry.domains.base import Corpus, Domain

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
