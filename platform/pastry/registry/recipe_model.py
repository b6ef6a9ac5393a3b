"""A recipe as an MLflow pyfunc model ("models from code": nothing is pickled). MLflow runs this file to load one."""

from __future__ import annotations

import mlflow
from mlflow.pyfunc import PythonModel

from pastry.engine.transformers_engine import TransformersEngine


class RecipeModel(PythonModel):
    """target + skills with λ, composed in memory when it is loaded."""

    def load_context(self, context) -> None:
        recipe = context.model_config
        skills = {skill["name"]: skill["path"] for skill in recipe["skills"]}
        self.engine = TransformersEngine(recipe["target"], skills)
        self.engine.attach({skill["name"]: skill["lambda"] for skill in recipe["skills"]})

    def predict(self, context, model_input: list[str], params: dict | None = None) -> list[str]:
        """Greedy continuations of prompts; `params`: max_new_tokens (default 64)."""
        tokens = int((params or {}).get("max_new_tokens", 64))
        return [completion.text for completion in self.engine.generate(list(model_input), max_new_tokens=tokens)]


mlflow.models.set_model(RecipeModel())
