"""Domains by name. A new one is a new file or folder here and a line in `KINDS`."""

from __future__ import annotations

from importlib import import_module

from pastry.domains.base import Domain, PretrainingCorpus

KINDS = {"lab": "pastry.domains.lab:LabDomain", "files": "pastry.domains.files:FilesDomain"}
CORPORA = {"lab": "pastry.domains.lab:LabCorpus"}


def _named(path: str):
    module, name = path.split(":")
    return getattr(import_module(module), name)


def load_domain(name: str, settings, seed: int) -> Domain:
    """The domain `name` of the kind that `settings.kind` says. Raises PastryError for an unknown name."""
    return _named(KINDS[settings.kind])(name, settings, seed)


def load_corpus(settings, seed: int) -> PretrainingCorpus:
    """The corpus a base is pre-trained on."""
    return _named(CORPORA[settings.kind])(settings, seed)
