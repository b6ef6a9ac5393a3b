"""What `parallelism` means to DeepSpeed (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054)."""

from __future__ import annotations

from typing import Any

from pastry.config import TrainingSettings


def deepspeed_config(settings: TrainingSettings) -> dict[str, Any] | None:
    """DeepSpeed's configuration, completed by transformers where it says "auto"; None for plain DDP."""
    if settings.parallelism == "ddp":
        return None
    stage, _, offload = settings.parallelism.partition("_")
    zero: dict[str, Any] = {"stage": int(stage.removeprefix("zero")), "stage3_gather_16bit_weights_on_model_save": True}
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "steps_per_print": 10**9,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == "zero3":
            zero["offload_param"] = {"device": "cpu"}
        # With its states on the CPU the step is DeepSpeed's vectorised Adam; torch's would take most of the time.
        config["optimizer"] = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
    return config
