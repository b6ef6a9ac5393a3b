"""Every setting of a run: YAML into pydantic models, unknown keys refused, each default in exactly one place."""

from pastry.config.domains import DomainSettings, FilesSettings, LabSettings
from pastry.config.load import load_config
from pastry.config.run import CheckpointSettings, GenerationSettings, PastConfig, ResourceSettings, Tracking
from pastry.config.strict import Strict, explain
from pastry.config.training import (
    LoRASettings,
    MidtrainSettings,
    ModelShape,
    PretrainSettings,
    RLSettings,
    SFTSettings,
    TextSettings,
    TrainingSettings,
)

__all__ = [
    "CheckpointSettings",
    "DomainSettings",
    "FilesSettings",
    "GenerationSettings",
    "LabSettings",
    "LoRASettings",
    "MidtrainSettings",
    "ModelShape",
    "PastConfig",
    "PretrainSettings",
    "RLSettings",
    "ResourceSettings",
    "SFTSettings",
    "Strict",
    "TextSettings",
    "Tracking",
    "TrainingSettings",
    "explain",
    "load_config",
]
