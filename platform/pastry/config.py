"""Every setting of a run: YAML into pydantic models, unknown keys refused, each default in exactly one place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pastry.errors import PastryError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelShape(Strict):
    """A model to pre-train from scratch: the transformers configuration of its architecture."""

    model_type: Literal["llama"] = "llama"
    """Not qwen2: AutoTokenizer gives every qwen2 checkpoint Qwen's own tokenizer, whatever tokenizer lies beside it."""
    hidden_size: int = Field(128, gt=0)
    intermediate_size: int = Field(384, gt=0)
    num_hidden_layers: int = Field(2, gt=0)
    num_attention_heads: int = Field(4, gt=0)
    num_key_value_heads: int = Field(4, gt=0)
    max_position_embeddings: int = Field(256, gt=0)
    tie_word_embeddings: bool = True


class OptimizerSettings(Strict):
    """AdamW and its schedule."""

    lr: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest norm of a gradient."""
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of lr."""


class TextSettings(OptimizerSettings):
    """Next-token training on packed rows of text: pre-training and document SFT."""

    steps: int | None = Field(None, gt=0)
    epochs: int | None = Field(None, gt=0)
    batch_rows: int = Field(32, gt=0)
    """Rows in a step, over all workers."""
    row_tokens: int = Field(1024, gt=0)
    """Tokens in a packed row."""
    log_every: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _one_length(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self


class GateSettings(Strict):
    """When a base made from scratch is good enough for RL to find the skill (else RL amplifies guessing)."""

    probe: str
    """A domain, neither source nor target: SFT on its documents, then its questions with the recall prefix forced."""
    prompted_accuracy: float = Field(0.75, ge=0, le=1)
    pretraining_accuracy: float = Field(0.99, ge=0, le=1)
    extra_steps: int = Field(800, gt=0)
    """How much longer a base that misses the gate trains at a time …"""
    extensions: int = Field(2, ge=0)
    """… and how often at most."""


class PretrainSettings(TextSettings):
    model: ModelShape = ModelShape()
    gate: GateSettings


class RLSettings(OptimizerSettings):
    """GRPO."""

    lr: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    steps: int = Field(100, gt=0)
    questions_per_step: int = Field(32, gt=0)
    group_size: int = Field(8, ge=2)
    """Completions of one question, over which the advantage is normalised."""
    max_new_tokens: int = Field(64, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    kl: float = Field(0.0, ge=0)
    """Weight of the KL divergence to the weights RL started from."""
    clip_range: float = Field(0.2, gt=0)
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    mask_truncated: bool = False


class SearchSettings(Strict):
    lambdas: list[float] = Field(min_length=1, default=[0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    concurrency: int | Literal["auto"] = "auto"
    """Tune trials at a time; auto: one a worker."""

    @field_validator("lambdas")
    @classmethod
    def _finite(cls, lambdas: list[float]) -> list[float]:
        for value in lambdas:
            if not math.isfinite(value):
                raise ValueError(f"λ must be a finite number, found {value}")
        return sorted(set(lambdas))


class GenerationSettings(Strict):
    """Greedy generation when answers are scored."""

    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(256, gt=0)


class ResourceSettings(Strict):
    workers: int | Literal["auto"] = "auto"
    """Ray Train workers of a training stage; auto: the cluster's CPUs (or GPUs), at most 8, that share every batch equally."""
    cpus_per_worker: int = Field(1, gt=0)
    """Also the threads of a worker."""
    use_gpu: bool = False


class Tracking(Strict):
    uri: str | None = None
    """MLflow tracking and registry; null: MLFLOW_TRACKING_URI, and without it an SQLite file in the storage directory."""
    experiment: str = "pastry"


class LabSettings(Strict):
    """The lab's world and its mixtures (`domains/lab`)."""

    kind: Literal["lab"]
    entities: int = Field(24, ge=4)
    """Entities in a group."""
    parts: int = Field(2, ge=1)
    """Disjoint parts of each domain: the most rounds a source can feed."""
    recall_share: float = Field(0.25, ge=0, le=1)
    """Share of pre-training answers that recite before answering."""
    documents_per_entity: int = Field(4, ge=1)
    """Documents about each entity in an epoch; every one is written anew."""
    one_off: int = Field(1000, ge=0)
    """One-off recitations in a pre-training epoch."""
    replayed_documents: int = Field(48, ge=0)
    replayed_questions: int = Field(96, ge=0)
    """What document SFT replays of pre-training in an epoch."""


class FilesSubject(Strict):
    documents: Path
    """JSON lines: {"id", "text"}."""
    questions: Path
    """JSON lines: {"document", "question", "answer"}; "document" is the id of the one that holds the answer."""


class FilesSettings(Strict):
    """One's own documents and questions (`domains/files`)."""

    kind: Literal["files"]
    subjects: dict[str, FilesSubject]
    parts: int = Field(1, ge=1)
    prompt: str = "Question: {question}\nAnswer:"
    prefix: str = " Let me recall what I have read."
    """The prompting baseline appends this to the prompt."""
    validation_share: float = Field(0.33, gt=0, lt=1)


DomainSettings = Annotated[LabSettings | FilesSettings, Field(discriminator="kind")]


Comparison = Literal["past_1_round", "pre_injection", "rl_on_target", "prompted", "control_random", "control_sft_on_qa"]


class PastConfig(Strict):
    """A whole PaST run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = 0
    storage: Path = Path("runs")
    """Where runs lie; shared by all nodes."""
    base: str | None = None
    """A checkpoint directory, a Hugging Face name or a models:/ URI …"""
    pretrain: PretrainSettings | None = None
    """… or a base made from scratch."""
    domain: DomainSettings
    sources: list[str] = Field(min_length=1)
    target: str
    rounds: int = Field(1, ge=1)
    sft: TextSettings
    rl: RLSettings
    search: SearchSettings = SearchSettings()
    compare: list[Comparison] = ["prompted", "control_random"]
    """Rows of the result table beside base, target_sft, past@1 and past@best; the default ones need no training."""
    control_sft_steps: int = Field(100, gt=0)
    """Steps of the control_sft_on_qa vector: plain SFT on the source's questions and short answers."""
    generation: GenerationSettings = GenerationSettings()
    resources: ResourceSettings = ResourceSettings()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self):
        if (self.base is None) == (self.pretrain is None):
            raise ValueError("give either base (a checkpoint) or pretrain (make one from scratch)")
        if self.target in self.sources:
            raise ValueError(f"target '{self.target}' is also a source: a skill is transferred to another domain")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources repeat: {self.sources}")
        if self.rounds > self.domain.parts:
            raise ValueError(f"rounds = {self.rounds} but the domain has parts = {self.domain.parts}: each round needs its own")
        if "past_1_round" in self.compare and self.rounds == 1:
            raise ValueError("compare: past_1_round needs rounds of at least 2")
        if self.pretrain and self.pretrain.gate.probe in [*self.sources, self.target]:
            raise ValueError(f"pretrain.gate.probe '{self.pretrain.gate.probe}' must be neither source nor target")
        return self


def _override(tree: dict, assignment: str) -> None:
    path, separator, value = assignment.partition("=")
    if not separator or not path:
        raise PastryError(f"'{assignment}' is no override: write key=value, for example rl.steps=60")
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise PastryError(f"'{assignment}': '{parent}' holds a value, not a group of settings")
    try:
        tree[leaf] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise PastryError(f"'{assignment}': the value is not valid YAML") from None


def load_config(path: Path, overrides: list[str] = ()) -> PastConfig:
    """Read a run's YAML, apply `key.subkey=value` overrides, validate.

    Raises PastryError, naming the file, every offending key, what was found and what was wanted.
    """
    try:
        tree: Any = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise PastryError(f"{path}: no such file; jobs/quickstart.yaml is an example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PastryError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise PastryError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise PastryError(f"{path}: expected settings (key: value), found {type(tree).__name__}")
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return PastConfig.model_validate(tree)
    except ValidationError as error:
        raise PastryError(f"{path}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """A pydantic error as one readable message: key, what is wrong, what was found."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part not in ("lab", "files")) or "settings"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'")
        elif problem["type"] == "missing":
            lines.append(f"'{key}' is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            found = "" if isinstance(problem["input"], dict | BaseModel) else f" (found {problem['input']!r})"
            lines.append(f"'{key}': {message}{found}")
    return "; ".join(lines)
