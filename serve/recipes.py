"""From the model name of a request to engine and λ, and answers that never mix recipes."""

from __future__ import annotations

import asyncio
import difflib
import itertools
import tempfile
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from pastry.engine.transformers_engine import Completion, TransformersEngine
from pastry.errors import PastryError
from pastry.vectors.algebra.combine import combine
from pastry.vectors.modules import Lambda, ModuleLambdas, lambda_values
from pastry.vectors.recipe import Recipe, SkillTerm, parse_recipe
from pastry_serve.config import ServeConfig
from pastry_serve.protocol import Refused

MOST_MERGED = 4
"""Vectors made of others that are held in memory at a time, each as large as a skill."""


@dataclass(frozen=True)
class Generation:
    """One prompt to continue. Requests with equal `key()` may share a batch."""

    recipe: Recipe
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    choices: int
    alone: int = 0
    """Differs for every request whose sampling was seeded: its answer must not depend on its neighbours."""

    def key(self) -> tuple:
        return self.recipe.model_dump_json(), self.max_tokens, self.temperature, self.top_p, self.seed, self.alone


class Kitchen:
    """Every target in memory with the skills that fit it."""

    def __init__(self, config: ServeConfig):
        self.config = config
        self.engines = {name: TransformersEngine(path, config.skills) for name, path in config.targets.items()}
        self._lock = asyncio.Lock()
        self._counter = itertools.count(1)
        self._merged: OrderedDict[tuple[str, str], None] = OrderedDict()
        """(target, text of the term) of the vectors made of others, the one used last at the end."""

    def recipe(self, name: str) -> Recipe:
        """The recipe a request names. Raises Refused: 404 for unknown names, 400 for a λ that is none or out of range."""
        try:
            recipe = parse_recipe(name)
        except PastryError as error:
            raise Refused(400, str(error), "model", "invalid_recipe") from None
        self._known(name, recipe.target, list(self.engines), "target")
        for term in recipe.skills:
            for skill in term.of or [term.name]:
                self._known(name, skill, list(self.config.skills), "skill")
            if term.version is not None:
                message = f"'{name}': versions are not served yet, write {term.name} without @{term.version}"
                raise Refused(400, message, "model", "invalid_recipe")
            low, high = self.config.lambda_low, self.config.lambda_high
            for lam in lambda_values(term.lam):
                if not low <= lam <= high:
                    raise Refused(400, f"'{name}': λ = {lam:g} is outside {low:g} … {high:g}", "model", "lambda_out_of_range")
        names = [term.name for term in recipe.skills if isinstance(term.lam, ModuleLambdas)]
        twice = [skill for skill in names if [term.name for term in recipe.skills].count(skill) > 1]
        if twice:
            message = f"'{name}': {twice[0]} stands there twice, once by module group; write one term with the sums"
            raise Refused(400, message, "model", "invalid_recipe")
        return recipe

    def _known(self, name: str, wanted: str, known: list[str], kind: str) -> None:
        if wanted not in known:
            near = difflib.get_close_matches(wanted, known, cutoff=0.4) or known
            raise Refused(
                404, f"'{name}': no {kind} '{wanted}'; did you mean {', '.join(near) or 'nothing'}?", "model", "model_not_found"
            )

    def seeded(self, generation: Generation) -> Generation:
        """Marked so that it is computed alone, if its sampling is seeded."""
        if generation.seed is None or generation.temperature == 0:
            return generation
        return replace(generation, alone=next(self._counter))

    async def answer(self, batch: list[Generation]) -> list[list[Completion]]:
        """Completions of each generation in order: one recipe at a time, its weights set before its prompts are run."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for index, generation in enumerate(batch):
            groups[generation.key()].append(index)
        answers: list[list[Completion]] = [[] for _ in batch]
        async with self._lock:  # two batches may be in flight: the weights are set for one at a time
            for indices in groups.values():
                prompts = [(index, batch[index].prompt) for index in indices for _ in range(batch[index].choices)]
                completions = await asyncio.to_thread(self._generate, batch[indices[0]], [prompt for _, prompt in prompts])
                for (index, _), completion in zip(prompts, completions, strict=True):
                    answers[index].append(completion)
        return answers

    def _generate(self, like: Generation, prompts: list[str]) -> list[Completion]:
        engine = self.engines[like.recipe.target]
        for term in like.recipe.skills:
            if term.of:
                self._merge(like.recipe.target, term)
        lambdas: dict[str, Lambda] = {}
        for term in like.recipe.skills:  # a skill named twice counts twice
            lambdas[term.name] = lambdas[term.name] + term.lam if term.name in lambdas else term.lam
        engine.attach(lambdas)
        seed = like.seed if like.seed is not None else next(self._counter)
        return engine.generate(
            prompts, max_new_tokens=like.max_tokens, temperature=like.temperature, top_p=like.top_p, seed=seed
        )

    def _merge(self, target: str, term: SkillTerm) -> None:
        """Have the engine hold a vector made of others; the one used longest ago makes room."""
        made = (target, term.name)
        if made not in self._merged:
            if len(self._merged) == MOST_MERGED:
                (old_target, old), _ = self._merged.popitem(last=False)
                self.engines[old_target].drop_skill(old)
            with tempfile.TemporaryDirectory() as scratch:
                skills = [(self.config.skills[skill], 1.0) for skill in term.of]
                combine(skills, Path(scratch, "merged"), name="merged", method=term.method)
                self.engines[target].add_skill(term.name, Path(scratch, "merged"))
            self._merged[made] = None
        self._merged.move_to_end(made)
