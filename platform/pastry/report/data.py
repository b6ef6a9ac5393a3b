"""What a report shows, and what `result.json` keeps of it."""

from __future__ import annotations

from pydantic import BaseModel

from pastry.evaluation.score import Score


class Difference(BaseModel):
    """A paired difference of accuracies over the same questions, with its 95 % interval."""

    mean: float
    low: float
    high: float


class Row(Score):
    """A row of the result table."""

    meaning: str
    """The row in a few plain words."""
    lambda_: float | None = None
    """λ of the injected vector, if one was injected."""
    gain: Difference | None = None
    """Against target_sft, paired."""


class LambdaPoint(BaseModel):
    """One trial of the search: validation accuracy of a source's vector at λ, with its 95 % interval."""

    source: str
    lambda_: float
    n: int
    accuracy: float
    low: float
    high: float


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


class ReportData(BaseModel):
    """Everything on the page."""

    name: str
    seed: int
    created: str
    """Date and time, ISO 8601, UTC."""
    machine: str
    versions: dict[str, str]
    sources: list[str]
    target: str
    rounds: int
    rows: list[Row]
    """Named as in DESIGN: base, target_sft, past@1, past@best, …"""
    lambda_best: float
    skill: str
    """The winning source."""
    search: list[LambdaPoint]
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
    realised_ratio: float | None
    """Of the materialised model at λ best."""
    lineage: list[LineageNode]
    registered: dict[str, str]
    """What the registry holds now: "skill" and "recipe" → models:/ URI."""
