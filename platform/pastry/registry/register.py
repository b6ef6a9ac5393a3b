"""Put skill vectors, checkpoints and recipes into the MLflow model registry, each exactly once. Weights go to the store."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pastry.config import Tracking
from pastry.errors import PastryError
from pastry.registry import store as weights
from pastry.registry.card import card, recipe_card
from pastry.registry.client import artifact_place, persist
from pastry.registry.origin import Origin, origin
from pastry.registry.recipes import RegisteredRecipe
from pastry.registry.resolve import usable
from pastry.registry.versions import FACTS, FINGERPRINT, KIND, LOCATION, RECIPE, REGISTERED, Facts, Gain, Version, read_version
from pastry.vectors.skill import MANIFEST_FILE

RECIPE_CODE = Path(__file__).with_name("recipe_model.py")
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 64)]),
)
"""Prompts in, completions out."""
Made = dict[str, str]
"""What is new of a version: `source`, and perhaps `run_id` and `model_id`."""


def register_directory(
    client: MlflowClient,
    directory: Path,
    store: str,
    *,
    name: str | None = None,
    alias: str | None = None,
    tags: dict[str, str] | None = None,
    description: str = "",
    gain: Gain | None = None,
    run_id: str | None = None,
    parent_run: str | None = None,
    fingerprint: str | None = None,
) -> Version:
    """A version of a skill vector, or of a checkpoint, with its weights in `store`.

    `name` None: a skill vector's own. The version belongs to the run `run_id`; None: to one made for it, inside `parent_run`.
    `fingerprint` of a checkpoint spares reading it once. The same weights are the same version, however often and by however
    many processes they are registered: what is said of them the last time counts.
    Raises PastryError for what is damaged, revoked or badly named, and whatever MLflow does.
    """
    found = origin(directory, fingerprint)
    name = name or (found.manifest.name if found.manifest else directory.resolve().name)
    _check_words(name, tags)
    facts = _facts(found, gain, description)
    location = weights.put(directory, found.fingerprint, store)
    document = Path(directory, MANIFEST_FILE) if found.manifest else None

    def make() -> Made:
        run = run_id or _own_run(client, name, parent_run)
        if document:
            client.log_artifact(run, str(document), "skill")
        else:
            client.log_dict(run, {"fingerprint": found.fingerprint, "inputs": found.inputs}, "checkpoint/origin.json")
        if run_id is None:
            client.set_terminated(run)
        folder = "skill" if document else "checkpoint"
        return {"source": f"{client.get_run(run).info.artifact_uri}/{folder}", "run_id": run}

    said = {LOCATION: location, FINGERPRINT: found.fingerprint}
    return _version(client, name, facts, said | (tags or {}), alias, partial(card, found), make)


def register_recipe(
    client: MlflowClient,
    name: str,
    recipe: RegisteredRecipe,
    run_id: str,
    *,
    alias: str | None = None,
    tags: dict[str, str] | None = None,
    gain: Gain | None = None,
) -> Version:
    """A recipe as a registered pyfunc model of a few KB: `mlflow.pyfunc.load_model(…).predict(prompts)` answers.

    The same recipe is the same version.
    """
    _check_words(name, tags)
    facts = Facts(kind="recipe", inputs=recipe.inputs(), gain=gain)
    text = recipe.model_dump_json()

    def make() -> Made:
        uri = client.tracking_uri
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        with warnings.catch_warnings(), mlflow.start_run(run_id=run_id, log_system_metrics=False):
            # MLflow asks for type hints and an input example, to derive the signature that it is given here.
            warnings.simplefilter("ignore", UserWarning)
            logged = mlflow.pyfunc.log_model(
                name="recipe",
                python_model=str(RECIPE_CODE),
                model_config=json.loads(text),
                signature=SIGNATURE,
                pip_requirements=["pastry"],
            )
        return {"source": logged.model_uri, "run_id": run_id, "model_id": logged.model_id}

    said = {FINGERPRINT: recipe.fingerprint(), RECIPE: text}
    return _version(client, name, facts, said | (tags or {}), alias, partial(recipe_card, recipe), make)


def _version(
    client: MlflowClient,
    name: str,
    facts: Facts,
    tags: dict[str, str],
    alias: str | None,
    describe: Callable[[str, Facts], str],
    make: Callable[[], Made],
) -> Version:
    """The version of this name and fingerprint, made if there is none, with these facts, tags and alias.

    `describe` writes the card, of the version's URI and facts.

    MLflow makes a version with its tags in one step, and numbers grow in the order in which they become visible. Of several
    processes that find none and make one each, every one therefore sees all that are older than its own: the oldest stays.
    """
    _ensure_model(client, name, facts.kind)
    same = _same(client, name, tags[FINGERPRINT])
    if not same:
        made = make() | {"tags": tags | _tag(facts), "description": describe(f"{REGISTERED}{name}/VERSION", facts)}
        persist(lambda: client.create_model_version(name, **made))
        same = _same(client, name, tags[FINGERPRINT])
    for spare in same[1:]:  # made at the same moment, perhaps by a process that was killed before it saw this
        _drop(client, spare)
    usable(same[0], same[0].uri)
    there = client.get_model_version(name, str(same[0].number))
    known = read_version(there).facts  # what is not said this time stays
    facts = facts.model_copy(update={key: getattr(facts, key) or getattr(known, key) for key in ("gain", "description")})
    for key, value in (tags | _tag(facts)).items():
        if there.tags.get(key) != value:
            persist(lambda key=key, value=value: client.set_model_version_tag(name, there.version, key, value))
    description = describe(same[0].uri, facts)
    if there.description != description:
        persist(lambda: client.update_model_version(name, there.version, description))
    if alias and alias not in there.aliases:
        persist(lambda: client.set_registered_model_alias(name, alias, there.version))
    return read_version(client.get_model_version(name, there.version))


def _check_words(name: str, tags: dict[str, str] | None) -> None:
    """Before gigabytes are copied."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise PastryError(f"name '{name}': wanted letters, digits, '_', '-' and '.', for recipes and models:/ URIs name it")
    for key in tags or {}:
        if key.startswith(("pastry.", "mlflow.")):
            raise PastryError(f"tag '{key}': names that begin with pastry. or mlflow. are theirs; choose another")


def _same(client: MlflowClient, name: str, fingerprint: str) -> list[Version]:
    """The oldest first."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{FINGERPRINT}` = '{fingerprint}'")
    return sorted(map(read_version, found), key=lambda version: version.number)


def _drop(client: MlflowClient, spare: Version) -> None:
    try:
        if not client.get_model_version(spare.name, str(spare.number)).aliases:
            persist(lambda: client.delete_model_version(spare.name, str(spare.number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # whose it was has done it
            raise


def _ensure_model(client: MlflowClient, name: str, kind: str) -> None:
    try:
        persist(lambda: client.create_registered_model(name, tags={KIND: kind}))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        held = client.get_registered_model(name).tags.get(KIND, "other things")
        if held != kind:
            raise PastryError(
                f"'{name}' holds versions of another kind ({held}), this is a {kind}; choose another name"
            ) from None


def _own_run(client: MlflowClient, name: str, parent: str | None) -> str:
    """A run for what is registered by hand."""
    experiment = Tracking().experiment
    if not client.get_experiment_by_name(experiment):
        try:
            persist(lambda: client.create_experiment(experiment, artifact_place(client.tracking_uri)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    where = client.get_experiment_by_name(experiment).experiment_id
    return client.create_run(where, tags=tags, run_name=f"register {name}").info.run_id


def _tag(facts: Facts) -> dict[str, str]:
    return {FACTS: facts.model_dump_json(exclude_none=True)}


def _facts(found: Origin, gain: Gain | None, description: str) -> Facts:
    known: dict[str, Any] = {"kind": found.kind, "inputs": found.inputs, "gain": gain, "description": description}
    if found.manifest:
        taken = {"domain", "training_run", "norm", "cosine_to_sft", "lambda_advice", "scores"}
        known |= found.manifest.model_dump(include=taken)
    return Facts(**known)
