"""What a report shows, and what `result.json` keeps of it."""

from __future__ import annotations

from pydantic import BaseModel

from pastry.config import DomainSettings
from pastry.evaluation.score import Score
from pastry.report.measured import Ablation, Difference, Lambda, Matrix, Search
from pastry.vectors.inject import InjectReport


class Row(Score):
    """A row of the result table."""

    meaning: str
    """The row in a few plain words."""
    lambda_: Lambda | None = None
    """λ of the injected vector, if one was injected."""
    gain: Difference | None = None
    """Against target_sft, paired."""


class LineageNode(BaseModel):
    """A stage in the lineage graph."""

    stage: str
    kind: str
    inputs: list[str]
    """Stages it was made from."""
    fingerprint: str | None
    """Of the checkpoint or skill vector it made."""
    run_id: str
    """Its MLflow run."""
    seconds: float


class Deployment(BaseModel):
    """A server that can answer with the recipe."""

    where: str
    """Its address."""
    since: str
    """Date and time, ISO 8601, UTC."""


class Stored(BaseModel):
    """How the injected skill vector is stored."""

    computed_dtype: str
    stored_dtype: str
    source_dtypes: list[str]
    """Of the checkpoints that it was taken from."""


class ReportData(BaseModel):
    """Everything on the page."""

    name: str
    seed: int
    created: str
    """Date and time, ISO 8601, UTC."""
    machine: str
    versions: dict[str, str]
    domain: DomainSettings
    sources: list[str]
    target: str
    rounds: int
    rows: list[Row]
    """Named as in DESIGN: base, target_sft, past@1, past@best, …"""
    search: Search
    ablation: Ablation | None = None
    matrix: Matrix | None = None
    cosines: dict[str, float | None]
    """sft_source_rl, sft_target_rl, sft_sft: over all weights."""
    cosine_tables: dict[str, dict[str, dict[str, float | None]]]
    """Title → layer → module → cosine; layer "-" holds the tensors outside the layers."""
    curves: dict[str, list[dict[str, float]]]
    """Training stage → its logged points: step, steps, seconds and loss (SFT) or reward, rewards/…/mean (RL)."""
    seconds: dict[str, float]
    """Stage → how long it took."""
    gate: dict | None
    """gate_passed, gate_tries (list of {prompted, pretraining}), gate_wanted; None without pre-training."""
    perplexity: dict[str, float]
    """Of the target's documents: before ("target_sft") and after injection ("past@best")."""
    injected: InjectReport
    """How the model at λ best was written out, and what of λ·v arrived in it."""
    stored: Stored | None = None
    lineage: list[LineageNode]
    registered: dict[str, str]
    """What the registry holds now: "skill" and "recipe" → models:/ URI."""
    aliases: list[str] = []
    """Of the registered skill, when the report was made."""
    deployments: list[Deployment] = []
    """Where both the skill and the target were in memory then."""

    @property
    def best(self) -> Row:
        """The row that the claimed gain is of."""
        return next(row for row in self.rows if row.name == "past@best")

    @property
    def skill(self) -> str:
        """The winning source."""
        return self.search.best.source

    @property
    def lambda_best(self) -> Lambda:
        return self.search.best.lambda_
