"""One's own documents and questions: two JSON-lines files a domain, a third with texts derived from the documents.

Splits and parts go by document: no document is asked about in two splits or two parts.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path

from pastry.config import FilesSettings
from pastry.domains.base import Corpus, Domain, Question, Split, Text, Verdict
from pastry.errors import PastryError


class FilesDomain(Domain):
    """Documents to read and closed-book questions with short answers, scored by normalised exact match."""

    modes = ("answer",)

    def __init__(self, name: str, settings: FilesSettings, seed: int):
        if name not in settings.subjects:
            raise PastryError(f"domain.subjects has no '{name}': it has {', '.join(settings.subjects) or 'none'}")
        self.name, self.parts, self.settings = name, settings.parts, settings
        files = settings.subjects[name]
        rows = read_rows(files.documents, ("id", "text"))
        documents = {row["id"]: row["text"] for row in rows}
        if len(documents) < len(rows):
            raise PastryError(f"{files.documents}: document ids repeat")
        order = list(documents)
        random.Random(f"files-{seed}-{name}").shuffle(order)
        self._parts = [order[index :: settings.parts] for index in range(settings.parts)]
        if not all(self._parts):
            raise PastryError(f"{files.documents}: {len(order)} documents cannot fill {settings.parts} parts")
        self._documents = documents
        self._asked: dict[str, list[Question]] = {identity: [] for identity in documents}
        for line, row in enumerate(self._about_documents(files.questions, ("question", "answer")), 1):
            prompt = settings.prompt.format(question=row["question"])
            self._asked[row["document"]].append(Question(f"{name}/{line}", prompt, row["answer"]))
        self._derived: dict[str, list[str]] = {identity: [] for identity in documents}
        for row in self._about_documents(files.derived, ("text",)) if files.derived else []:
            self._derived[row["document"]].append(row["text"])

    def _about_documents(self, path: Path, keys: tuple[str, ...]) -> list[dict[str, str]]:
        """A file's rows, each of which names its document."""
        rows = read_rows(path, ("document", *keys))
        for line, row in enumerate(rows, 1):
            if row["document"] not in self._documents:
                known = self.settings.subjects[self.name].documents
                raise PastryError(f"{path}, line {line}: document '{row['document']}' is not in {known}")
        return rows

    def documents(self, part: int) -> list[str]:
        return [self._documents[identity] for identity in self._parts[part - 1]]

    def sft_epoch(self, part: int, rng: random.Random) -> list[Text]:
        texts = self.documents(part)
        rng.shuffle(texts)
        return [Text.plain(text) for text in texts]

    def derived_epoch(self, part: int, rng: random.Random) -> list[Text]:
        texts = self._derived_texts(part)
        rng.shuffle(texts)
        return [Text.plain(text) for text in texts]

    def _derived_texts(self, part: int) -> list[str]:
        texts = [text for identity in self._parts[part - 1] for text in self._derived[identity]]
        if not texts:
            key, path = f"domain.subjects.{self.name}.derived", self.settings.subjects[self.name].derived
            wanted = "sft.second trains on JSON lines of document and text"
            found = f"{path} holds no text of part {part}'s documents" if path else "is not set"
            raise PastryError(f"{key}: {found}; {wanted}")
        return texts

    def answers_epoch(self, part: int, rng: random.Random) -> list[Text]:
        questions = self.questions(part)
        rng.shuffle(questions)
        return [Text(((question.prompt, False), (f" {question.answer}", True))) for question in questions]

    def questions(self, part: int, split: Split | None = None) -> list[Question]:
        identities = self._parts[part - 1]
        border = max(1, round(len(identities) * self.settings.validation_share))
        chosen = {"validation": identities[:border], "test": identities[border:]}.get(split, identities)
        return [question for identity in chosen for question in self._asked[identity]]

    def verify(self, question: Question, completion: str, finished: bool) -> Verdict:
        """SQuAD's normalised exact match of the first line (Rajpurkar et al. 2016): case, punctuation, articles off."""
        lines = completion.strip().splitlines()
        answer, wanted = _normalised(lines[0] if lines else ""), _normalised(question.answer)
        return Verdict(
            correct=answer == wanted, well_formed=bool(answer), mode="answer", lenient=wanted in _normalised(completion)
        )

    def prompted(self, question: Question) -> tuple[str, str]:
        return question.prompt + self.settings.prefix, ""

    def data_digest(self, part: int, derived: bool = False) -> str:
        content = (self.documents(part), self.questions(part), *([self._derived_texts(part)] if derived else []))
        return "sha256:" + hashlib.sha256(repr(content).encode()).hexdigest()


class FilesCorpus(Corpus):
    """One JSON-lines file a kind of text."""

    def __init__(self, settings: FilesSettings, seed: int):
        self.files = settings.corpora
        self.kinds = tuple(settings.corpora)

    def texts_of(self, kind: str, rng: random.Random) -> list[Text]:
        return [Text.plain(row["text"]) for row in read_rows(self.files[kind], ("text",))]


def _normalised(text: str) -> str:
    words = re.sub(r"[^\w\s]", "", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def read_rows(path: Path, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a JSON-lines file, each with these keys as text. Raises PastryError, naming the line, for what is not so."""
    try:
        with open(path, encoding="utf-8") as file:  # not str.splitlines: it also cuts at separators that JSON allows in text
            lines = list(file)
    except OSError as error:
        raise PastryError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise PastryError(f"{path}: cannot be read: not UTF-8 ({error.reason} at byte {error.start})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise PastryError(f"{path}, line {number}: not JSON: {error.msg}") from None
        missing = [
            key for key in keys if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip()
        ]
        if missing:
            raise PastryError(f"{path}, line {number}: needs {', '.join(missing)} as non-empty text")
        rows.append(row)
    if not rows:
        raise PastryError(f"{path}: empty")
    return rows
