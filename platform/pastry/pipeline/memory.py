"""What a worker's memory must hold at the peak of a training step, in bytes, before anything is started.

States of the model (weights, gradients, Adam): ZeRO, Rajbhandari et al. 2020 (arXiv 1910.02054), section 3, with what
torch's DDP and DeepSpeed keep beside them. Activations: counted tensor by tensor for a Llama or Qwen2 decoder, after
Korthikanti et al. 2022 (arXiv 2205.05198), section 4. `benchmarks/training/memory_estimate.py` holds it against
measurements: on CPUs it is 10 to 16 % low. Left out: CUDA's context, NCCL (1–2 GB a GPU) and fragmentation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pastry.config import RLSettings, TextSettings, TrainingSettings
from pastry.pipeline.model_size import ModelSize

LIVE_PARAMETERS = 10**9
"""DeepSpeed's stage3_max_live_parameters and sub_group_size: what ZeRO-3 keeps gathered, and steps at a time."""
BUCKET = 5 * 10**8
"""DeepSpeed's reduce_bucket_size, in elements."""
HEAD_TILE = (4096, 32768)
"""Tokens × words of the logits that TRL computes at a time; the whole of them is never in memory."""
TILE_COPIES = 8
"""Float32 copies of a tile in TRL's backward pass where Triton, which fuses it, is missing: on CPUs."""
VLLM_SHARE = 0.3
"""Of a GPU's memory, taken by vLLM beside the training (TRL's vllm_gpu_memory_utilization)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker."""

    weights: int
    gradients: int
    optimizer: int
    """Adam's two moments, and under ZeRO the float32 master weights."""
    activations: int
    """Of a forward and backward pass, the loss included."""
    rollouts: int
    """Keys and values, prefill and gathered weights while completions are sampled."""
    update: int
    """What the optimizer's step needs beside its states."""
    host: int
    """On a GPU: main memory for what is offloaded, or for loading the weights."""

    @property
    def total(self) -> int:
        """The states, and whichever of the three phases of a step needs most."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.rollouts, self.update)

    def document(self) -> dict[str, int]:
        return asdict(self) | {"total": self.total}


def worker_memory(size: ModelSize, train: TextSettings | RLSettings, workers: int, use_gpu: bool, prompt: int = 0) -> Memory:
    """The estimate for a training stage. `prompt`: tokens of RL's longest prompt.

    Without a GPU what would be offloaded stays in the same memory: `host` is then 0 and counted where it belongs.
    """
    sampled = 0
    if isinstance(train, RLSettings):
        sampled = train.questions_per_step * train.group_size // workers
        rows, tokens = train.micro_completions or sampled, prompt + train.max_new_tokens
    else:
        rows, tokens = train.micro_rows or train.batch_rows // workers, train.row_tokens
    reference = isinstance(train, RLSettings) and train.kl > 0 and train.lora is None
    states = _states(size, train, workers, 2 if reference else 1)
    host = states.pop("host")
    if use_gpu:
        # Every worker reads the float32 weights into main memory first; ZeRO-3 shards them while it reads.
        host = max(host, 0 if _zero(train) == 3 else 4 * size.parameters)
    else:
        states["optimizer"], host = states["optimizer"] + host, 0
    rollouts = _rollouts(size, train, sampled, prompt) if isinstance(train, RLSettings) else 0
    return Memory(**states, activations=_activations(size, train, rows, tokens, use_gpu), rollouts=rollouts, host=host)


def trained_parameters(size: ModelSize, train: TrainingSettings) -> int:
    """All, or those of the adapter: rank × (inputs + outputs) of each matrix it is put beside (LoRA, arXiv 2106.09685)."""
    if train.lora is None:
        return size.parameters
    targets = train.lora.targets
    chosen = [
        inputs + outputs
        for name, (inputs, outputs) in size.linear_layers().items()
        if targets == "all-linear" or name in targets
    ]
    return size.layers * train.lora.rank * sum(chosen)


def _zero(train: TrainingSettings) -> int:
    """The stage of ZeRO; 0: DDP."""
    return 0 if train.parallelism == "ddp" else int(train.parallelism[4])


def _bytes(train: TrainingSettings) -> int:
    return 4 if train.precision == "fp32" else 2


def _states(size: ModelSize, train: TrainingSettings, workers: int, models: int) -> dict[str, int]:
    """`models`: 2 where a frozen reference lies beside the one in training."""
    parameters, trained, stored = size.parameters, trained_parameters(size, train), _bytes(train)
    stage, offload = _zero(train), train.parallelism.endswith("offload")
    if stage == 0:
        # Mixed precision is autocast: the weights are float32, and a 16-bit copy of each lives as long as the activations.
        weights = 4 * parameters * models + (stored * parameters if stored == 2 else 0)
        # DDP's buckets are a second copy of the gradients.
        gradients = 4 * trained * (2 if workers > 1 else 1)
        return {"weights": weights, "gradients": gradients, "optimizer": 8 * trained, "update": 0, "host": 0}
    share = trained // workers
    bucket = stored * min(trained, BUCKET)
    weights = stored * parameters * models // (workers if stage == 3 else 1)
    gradients = bucket + stored * (trained if stage == 1 else share)
    optimizer, update, host = 12 * share, 4 * (min(share, LIVE_PARAMETERS) if stage == 3 else share), 0
    if offload:
        host, optimizer, update = 16 * share, 0, 0  # master, moments and the gradient in float32
        if stage > 1:
            gradients = bucket
    if stage == 3:
        if offload:
            host, weights = host + weights, 0
        weights += stored * min(parameters, LIVE_PARAMETERS)
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "update": update, "host": host}


def _activations(size: ModelSize, train: TrainingSettings, rows: int, tokens: int, use_gpu: bool) -> int:
    """Saved for the backward pass by a micro-batch of `rows` × `tokens`, and the head's own needs."""
    stored, count = _bytes(train), rows * tokens
    queries = size.heads * size.head_size
    # Two RMSNorms: their input in float32, the normalised and the scaled one; q, and k and v repeated for all heads, and
    # what attention gives; gate, silu(gate), up and their product.
    layer = count * (2 * size.hidden * (4 + 2 * stored) + 4 * queries * stored + 4 * size.intermediate * stored)
    layer += rows * tokens**2 * stored  # which tokens see which, as numbers to add
    if train.parallelism == "ddp" and stored == 2:
        layer += count * 5 * size.hidden * stored  # autocast makes the input of each of five matrices a 16-bit copy
    layers = size.layers * layer
    if train.gradient_checkpointing:  # each layer's input, and one layer computed again
        layers = size.layers * count * size.hidden * stored + layer
    hidden = count * size.hidden * (stored + 4)
    head = 4 * size.vocabulary * size.hidden if train.lora is None else 0  # the float32 gradient of the head
    tile = min(count, HEAD_TILE[0]) * min(size.vocabulary, HEAD_TILE[1]) * (stored if use_gpu else 4 * TILE_COPIES)
    return layers + hidden + head + tile


def _rollouts(size: ModelSize, train: RLSettings, sampled: int, prompt: int) -> int:
    if train.rollouts != "transformers":
        return 0  # vLLM's share is taken off the GPU's memory
    # Outside of the loss there is no autocast: DDP samples with the float32 weights.
    stored = 4 if train.parallelism == "ddp" else _bytes(train)
    cache = 2 * size.layers * size.kv_heads * size.head_size * stored * sampled * (prompt + train.max_new_tokens)
    prefill = 3 * size.intermediate * stored * sampled * prompt
    scores = 3 * 4 * size.vocabulary * sampled  # of the next token: as they are, sorted, and as probabilities
    gathered = stored * size.parameters if _zero(train) == 3 else 0
    return cache + prefill + scores + gathered
