"""Settings of the training stages: pretrain, midtrain, sft, rl."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pastry.config.rewards import RewardSettings
from pastry.config.strict import Strict


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


class LoRASettings(Strict):
    """A low-rank adapter (PEFT) trained in place of the weights; the stage's model is the start with the adapter merged."""

    rank: int = Field(32, gt=0)
    alpha: float = Field(64, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"
    """Modules that get an adapter: their names' ends, or all linear ones but the head."""


class TrainingSettings(Strict):
    """AdamW and its schedule, and how the model is held and spread over the workers."""

    lr: float = Field(1e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest norm of a gradient."""
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of lr."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the arithmetic; the master weights are float32 always."""
    parallelism: Literal["ddp", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload"] = "ddp"
    """ddp: every worker holds everything; zero1, 2, 3: DeepSpeed shards optimizer, gradients, weights; offload: to the CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    lora: LoRASettings | None = None
    """null: all weights are trained."""


class TextSettings(TrainingSettings):
    """Next-token training on packed rows of text: pre-training, mid-training and document SFT."""

    steps: int | None = Field(None, gt=0)
    epochs: int | None = Field(None, gt=0)
    batch_rows: int = Field(32, gt=0)
    """Rows in a step, over all workers."""
    micro_rows: int | None = Field(None, gt=0)
    """Rows in a worker's forward pass; the gradients of a step's passes are accumulated. null: all of the worker's at once."""
    row_tokens: int = Field(1024, gt=0)
    """Tokens in a packed row."""
    overlap_tokens: int = Field(0, ge=0)
    """A text longer than a row goes on in the next, which repeats so many of its tokens as context, without loss."""
    log_every: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _consistent_text(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.overlap_tokens >= self.row_tokens:
            raise ValueError(f"overlap_tokens = {self.overlap_tokens} must be below row_tokens = {self.row_tokens}")
        return self


class SFTSettings(TextSettings):
    second: TextSettings | None = None
    """A second stage after the documents: on the texts derived from them (implications, tasks, questions and answers; PaST,
    arXiv 2601.11258, LooGLE: two-stage SFT)."""


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


class MidtrainSettings(TextSettings):
    """Pre-training's objective on another mixture of texts, with a schedule of its own (arXiv 2512.07783)."""

    mixture: dict[str, float] = Field(min_length=1)
    """Name of a kind of text → its share of the texts; the shares are scaled to sum to 1."""

    @model_validator(mode="after")
    def _positive(self):
        for name, share in self.mixture.items():
            if not 0 < share < float("inf"):
                raise ValueError(f"mixture.{name}: a share must be above 0, found {share}")
        return self


class RLSettings(TrainingSettings):
    """GRPO (arXiv 2402.03300; PaST, arXiv 2601.11258)."""

    lr: float = Field(1e-6, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    steps: int = Field(100, gt=0)
    questions_per_step: int = Field(32, gt=0)
    group_size: int = Field(8, ge=2)
    """Completions of one question, over which the advantage is normalised."""
    micro_completions: int | None = Field(None, gt=0)
    """Completions in a worker's forward and backward pass; null: all of the worker's at once."""
    max_new_tokens: int = Field(64, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    kl: float = Field(0.0, ge=0)
    """Weight of the KL divergence to the weights RL started from."""
    clip_range: float = Field(0.2, gt=0)
    loss: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = "dapo"
    mask_truncated: bool = False
    """Completions cut off at max_new_tokens take no part in the loss."""
    rewards: RewardSettings = RewardSettings()
    rollouts: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    """Who samples: transformers in the training process, vLLM beside it on the same GPU, or a `trl vllm-serve` of your own."""
    vllm_server_url: str | None = None
    """Of `rollouts: vllm_server`: its address, http://HOST:PORT."""
    max_turns: int = Field(8, gt=0)
    """Of a domain with an environment: the most tool-calling turns of an episode."""

    @model_validator(mode="after")
    def _consistent_rl(self):
        if (self.rollouts == "vllm_server") != (self.vllm_server_url is not None):
            raise ValueError("vllm_server_url is the address for rollouts: vllm_server; give both or neither")
        return self
