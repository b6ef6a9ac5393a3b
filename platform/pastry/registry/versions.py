"""A registered version as Pastry reads it: what MLflow's model version and its tags say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

REGISTERED = "models:/"
KIND = "pastry.type"
"""Tag of a registered model: what its versions are."""
LOCATION = "pastry.uri"
"""Tag of a version: where its weights are. Not MLflow's own source, for tracking servers refuse a local path there."""
FINGERPRINT = "pastry.fingerprint"
"""Tag of a version, and of a stage's run: of what it is."""
FACTS = "pastry.facts"
"""Tag of a version: `Facts` in JSON. One tag, for a listing costs as much as there are tags."""
RECIPE = "pastry.recipe"
"""Tag of a recipe's version: the recipe in JSON."""
REVOKED = "pastry.revoked"
"""Tag of a version that must not be used any more: {"reason", "at"} in JSON."""
SERVED = "pastry.served."
"""Beginning of a version's tag that says where it is served: {"endpoint", "since", "as"} in JSON."""
INPUTS = "pastry.inputs"
"""Tag of a stage's run: role → fingerprint, or digest of data, of what it worked on, in JSON."""

Kind = Literal["skill", "checkpoint", "recipe"]


class Gain(BaseModel):
    """What a skill brings on a target: accuracies and their paired difference with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    target: str
    lam: FiniteFloat | str
    n: int
    """Questions, the same with and without the skill."""
    before: FiniteFloat
    after: FiniteFloat
    mean: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    def __str__(self) -> str:
        percent = [100 * value for value in (self.mean, self.low, self.high)]
        return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*percent) + f" on {self.target}, n = {self.n}"


class Facts(BaseModel):
    """What a listing shows and lineage follows."""

    model_config = ConfigDict(extra="ignore")  # of a newer Pastry

    kind: Kind = "skill"
    description: str = ""
    """In the user's words."""
    inputs: dict[str, str] = {}
    """Role → fingerprint, or digest of data, of what it was made from."""
    domain: str | None = None
    training_run: str | None = None
    norm: FiniteFloat | None = None
    cosine_to_sft: FiniteFloat | None = None
    lambda_advice: FiniteFloat | None = None
    gain: Gain | None = None
    scores: dict[str, FiniteFloat] = {}


@dataclass(frozen=True)
class Version:
    """One version of a registered skill vector, checkpoint or recipe."""

    name: str
    number: int
    fingerprint: str | None
    location: str
    facts: Facts
    aliases: list[str]
    tags: dict[str, str]
    """Those that users gave."""
    description: str
    revoked: dict[str, str] | None
    """{"reason", "at"}, or None."""
    served: list[dict[str, str]]
    """{"endpoint", "since", "as"} of each server that has it in memory."""
    recipe: dict[str, Any] | None
    run_id: str | None
    created: str

    @property
    def uri(self) -> str:
        """`models:/name/3`."""
        return f"{REGISTERED}{self.name}/{self.number}"

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {"uri": self.uri} | asdict(self) | {"facts": self.facts.model_dump(mode="json", exclude_none=True)}


def read_version(found: ModelVersion, aliases: Iterable[str] | None = None) -> Version:
    """`aliases`: where MLflow did not fill them in, as in the answers of a search."""
    tags = dict(found.tags)
    return Version(
        name=found.name,
        number=int(found.version),
        fingerprint=tags.get(FINGERPRINT),
        location=tags.get(LOCATION, found.source),
        facts=Facts.model_validate_json(tags.get(FACTS, "{}")),
        aliases=sorted(found.aliases if aliases is None else aliases),
        tags={key: value for key, value in tags.items() if not key.startswith(("pastry.", "mlflow."))},
        description=found.description or "",
        revoked=json.loads(tags[REVOKED]) if REVOKED in tags else None,
        served=[json.loads(value) for key, value in sorted(tags.items()) if key.startswith(SERVED)],
        recipe=json.loads(tags[RECIPE]) if RECIPE in tags else None,
        run_id=found.run_id or None,
        created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
    )
