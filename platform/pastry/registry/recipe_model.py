"""A recipe as an MLflow pyfunc model ("models from code": nothing is pickled). MLflow runs this file to load one."""

from __future__ import annotations

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from pastry.engine.transformers_engine import TransformersEngine


class RecipeModel(PythonModel):
    """target + skills with λ, composed in memory when it is loaded."""

    def load_context(self, context) -> None:
        recipe = context.model_config
        skills = {skill["name"]: skill["path"] for skill in recipe["skills"]}
        self.engine = TransformersEngine(recipe["target"], skills)
        self.engine.attach({skill["name"]: skill["lambda"] for skill in recipe["skills"]})

    def predict(self, context, model_input: pd.DataFrame, params: dict) -> list[str]:
        """Greedy continuations of prompts: MLflow hands them over as a data frame of one column."""
        prompts = model_input.iloc[:, 0].tolist()
        completions = self.engine.generate(prompts, max_new_tokens=int(params["max_new_tokens"]))
        return [completion.text for completion in completions]


mlflow.models.set_model(RecipeModel())
