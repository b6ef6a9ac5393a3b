"""Put a skill vector and a recipe into the MLflow model registry. The weights stay where they are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from pastry.registry.resolve import FINGERPRINT, LOCATION
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.skill import MANIFEST_FILE

RECIPE_CODE = Path(__file__).with_name("recipe_model.py")
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 64)]),
)
"""Prompts in, completions out."""


def register_skill(client: MlflowClient, skill: Path, run_id: str, tags: dict[str, str], alias: str, description: str) -> str:
    """A version of the registered model named as the skill. Gives `models:/name/N`.

    MLflow gets the manifest and, as a tag, the directory's URI: tracking servers refuse a local path as a version's
    source, and gigabytes would take long through their upload. Registering the same vector again gives the version it has.
    """
    manifest = open_skill(skill).manifest
    _ensure(client, manifest.name, "pastry.type", "skill")
    found = [
        v
        for v in client.search_model_versions(f"name='{manifest.name}'")
        if v.tags.get(FINGERPRINT) == manifest.fingerprint
    ]
    if found:
        version = found[0].version
    else:
        facts = {
            LOCATION: skill.absolute().as_uri(),
            FINGERPRINT: manifest.fingerprint,
            "pastry.end": str(manifest.end),
            "pastry.start": str(manifest.start),
            "pastry.base": str(manifest.base),
            "pastry.domain": str(manifest.domain),
            "pastry.data_digest": str(manifest.data_digest),
            "pastry.training_run": str(manifest.training_run),
        }
        client.log_artifact(run_id, str(skill / MANIFEST_FILE), "skill")
        source = f"{client.get_run(run_id).info.artifact_uri}/skill"
        version = client.create_model_version(
            manifest.name, source, run_id=run_id, tags=facts | tags, description=description
        ).version
    client.set_registered_model_alias(manifest.name, alias, version)
    return f"models:/{manifest.name}/{version}"


def register_recipe(
    client: MlflowClient, uri: str, name: str, recipe: dict, run_id: str, tags: dict[str, str], alias: str
) -> str:
    """A recipe as a registered pyfunc model of a few KB: `mlflow.pyfunc.load_model(…).predict(prompts)` answers.

    `recipe`: target (directory), skills (list of {name, path, fingerprint, lambda}). Gives `models:/name/N`.
    """
    _ensure(client, name, "pastry.type", "recipe")
    text = json.dumps(recipe, sort_keys=True)
    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get("pastry.recipe") == text:
            client.set_registered_model_alias(name, alias, version.version)
            return f"models:/{name}/{version.version}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
        # MLflow asks for type hints and an input example, to derive the signature that it is given here.
        warnings.simplefilter("ignore", UserWarning)
        logged = mlflow.pyfunc.log_model(
            name="recipe",
            python_model=str(RECIPE_CODE),
            model_config=recipe,
            signature=SIGNATURE,
            pip_requirements=["pastry"],
        )
    version = client.create_model_version(
        name, logged.model_uri, run_id=run_id, tags=tags | {"pastry.recipe": text}, model_id=logged.model_id
    ).version
    client.set_registered_model_alias(name, alias, version)
    return f"models:/{name}/{version}"


def _ensure(client: MlflowClient, name: str, key: str, value: str) -> None:
    try:
        client.create_registered_model(name, tags={key: value})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
