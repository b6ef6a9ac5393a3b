"""How the lab's facts are written: documents, questions, and the two ways to answer them."""

from __future__ import annotations

import random

from pastry.domains.base import Question, Text
from pastry.domains.lab.world import SUBJECTS, Entity, World

INTRODUCTIONS = ("this text is about the {subject} {name} .", "{name} is a {subject} .", "there is a {subject} called {name} .")
FACTS = (
    "the {key} of {name} is {value} .",
    "{name} has the {key} {value} .",
    "{speakers} say the {key} of {name} is {value} .",
)
RECITED = "the {key} of {name} is {value} ."


def statement(entity: Entity, key: str, value: str, rng: random.Random) -> str:
    """One fact in one of three forms."""
    return rng.choice(FACTS).format(key=key, name=entity.name, value=value, speakers=SUBJECTS[entity.subject][2])


def document(entity: Entity, rng: random.Random) -> Text:
    """An introduction and the five facts, in a random order."""
    sentences = [rng.choice(INTRODUCTIONS).format(subject=entity.subject, name=entity.name)]
    sentences += [statement(entity, key, value, rng) for key, value in rng.sample(entity.facts, len(entity.facts))]
    return Text.plain(f"<bos> {' '.join(sentences)} <eos>")


def statements(entity: Entity, rng: random.Random) -> list[Text]:
    """The five facts, each a text of its own."""
    return [Text.plain(f"<bos> {statement(entity, key, value, rng)} <eos>") for key, value in entity.facts]


def questions(group: list[Entity], label: str) -> list[tuple[Question, str]]:
    """Nine questions an entity, each with its recitation: five of one fact, four of two."""
    asked = []
    for entity in group:
        relation, related = entity.facts[0][0], group[entity.related]
        for key, value in entity.facts:
            prompt = f"<bos> <q> what is the {key} of {entity.name} ? <a>"
            recited = RECITED.format(key=key, name=entity.name, value=value)
            asked.append((Question(f"{label}/{entity.name}/{key}", prompt, value, 1), recited))
        for key, value in related.facts[1:]:
            prompt = f"<bos> <q> what is the {key} of the {relation} of {entity.name} ? <a>"
            recited = RECITED.format(key=relation, name=entity.name, value=related.name)
            recited += " " + RECITED.format(key=key, name=related.name, value=value)
            asked.append((Question(f"{label}/{entity.name}/{relation}/{key}", prompt, value, 2), recited))
    return asked


def answered(question: Question, recited: str, recall: bool) -> Text:
    """A question with its correct answer, direct or after reciting the facts."""
    return Text.plain(f"{question.prompt} {recited + ' ' if recall else ''}answer : {question.answer} <eos>")


def one_off(world: World, rng: random.Random) -> Text:
    """A recall answer about names that occur nowhere else. It teaches copying and nothing else: the loss skips the
    question, the token that chooses the mode, and the first mention of whatever nobody could predict."""
    subject = rng.choice(list(SUBJECTS))
    relation, attributes, _ = SUBJECTS[subject]
    name, other = rng.sample(world.unused_names, 2)
    key = rng.choice(attributes)
    value = rng.choice(world.values[key])
    if rng.random() < 5 / 9:  # the questions' own share of one-fact questions
        if rng.random() < 1 / 5:
            key, value = relation, other
        ask, recite = f"what is the {key} of {name} ?", [(key, name, value)]
    else:
        ask = f"what is the {key} of the {relation} of {name} ?"
        recite = [(relation, name, other), (key, other, value)]
    segments = [(f"<bos> <q> {ask} <a> the", False)]
    for index, (k, n, v) in enumerate(recite):
        segments += [(f" the {k} of {n} is" if index else f" {k} of {n} is", True), (f" {v}", False), (" .", True)]
    segments.append((f" answer : {value} <eos>", True))
    return Text(tuple(segments))
