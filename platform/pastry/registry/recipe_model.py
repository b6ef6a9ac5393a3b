"""A recipe as an MLflow pyfunc model ("models from code": nothing is pickled). MLflow runs this file to load one."""

from __future__ import annotations

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from pastry.engine.transformers_engine import TransformersEngine
from pastry.registry.recipes import RegisteredRecipe


class RecipeModel(PythonModel):
    """target + skills with λ, composed in memory when it is loaded. PastryError if one of them is gone, changed or revoked."""

    def load_context(self, context) -> None:
        target, skills = RegisteredRecipe.model_validate(context.model_config).open(mlflow.get_registry_uri())
        self.engine = TransformersEngine(target, {name: path for name, (path, _) in skills.items()})
        self.engine.attach({name: lam for name, (_, lam) in skills.items()})

    def predict(self, context, model_input: pd.DataFrame, params: dict) -> list[str]:
        """Greedy continuations of prompts: MLflow hands them over as a data frame of one column."""
        prompts = model_input.iloc[:, 0].tolist()
        completions = self.engine.generate(prompts, max_new_tokens=int(params["max_new_tokens"]))
        return [completion.text for completion in completions]


mlflow.models.set_model(RecipeModel())
