"""What several test folders share: the smallest lab run there is, and one Ray instance."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import yaml

from pastry.config import LabSettings

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def lab() -> LabSettings:
    return LabSettings(kind="lab", entities=6)


def tiny_settings(storage: Path) -> dict:
    """A whole run in which nothing is learned: a few steps of everything."""
    text = {"batch_rows": 4, "row_tokens": 64, "lr": 1e-3, "log_every": 2}
    return {
        "name": "tiny",
        "seed": 3,
        "storage": str(storage),
        "domain": {"kind": "lab", "entities": 6, "one_off": 20, "replayed_documents": 4, "replayed_questions": 8},
        "sources": ["planet"],
        "target": "company",
        "pretrain": {
            **text,
            "steps": 6,
            "model": {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
            "gate": {"probe": "person", "prompted_accuracy": 0, "pretraining_accuracy": 0},
        },
        "sft": {**text, "steps": 4},
        # An untrained model earns no reward, so that only the weight decay moves RL's weights.
        "rl": {"steps": 2, "questions_per_step": 4, "group_size": 2, "max_new_tokens": 4, "lr": 1e-2, "weight_decay": 1.0},
        "search": {"lambdas": [0.5, 1.0]},
        "compare": ["prompted", "control_random"],
        "generation": {"max_new_tokens": 4},
        "resources": {"workers": 1},
    }


@pytest.fixture
def tiny_config(tmp_path) -> dict:
    return tiny_settings(tmp_path / "runs")


@pytest.fixture
def write_config(tmp_path):
    def write(config: dict) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write
