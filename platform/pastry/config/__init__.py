"""Every setting of a run: YAML into pydantic models, unknown keys refused, each default in exactly one place."""

from pastry.config.domains import DomainSettings, FilesSettings, LabSettings
from pastry.config.load import load_config
from pastry.config.matrix import MatrixSettings
from pastry.config.run import CheckpointSettings, GenerationSettings, PastConfig, ResourceSettings, Tracking
from pastry.config.search import AblationSettings, LambdaRange, Penalties, SearchSettings
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
    "AblationSettings",
    "CheckpointSettings",
    "DomainSettings",
    "FilesSettings",
    "GenerationSettings",
    "LabSettings",
    "LambdaRange",
    "LoRASettings",
    "MatrixSettings",
    "MidtrainSettings",
    "ModelShape",
    "PastConfig",
    "Penalties",
    "PretrainSettings",
    "RLSettings",
    "ResourceSettings",
    "SFTSettings",
    "SearchSettings",
    "Strict",
    "TextSettings",
    "Tracking",
    "TrainingSettings",
    "explain",
    "load_config",
]
