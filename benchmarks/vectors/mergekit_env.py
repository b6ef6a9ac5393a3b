"""mergekit in a virtual environment of its own, and its recipe for target + λ·(end − start)."""

import json
import sys
from pathlib import Path

from harness import HERE, measure

REQUIREMENTS = HERE / "mergekit-requirements.txt"
DEFAULT_CACHE = Path.home() / ".cache" / "pastry-benchmarks"


def install(cache: Path) -> Path:
    """The path of `mergekit-yaml`, installed under `cache` if it is not there yet in these versions."""
    venv = cache.absolute() / "mergekit-venv"
    marker = venv / "installed.txt"
    if not marker.exists() or marker.read_text() != REQUIREMENTS.read_text():
        print(f"installing mergekit into {venv}", flush=True)
        measure([sys.executable, "-m", "venv", "--clear", venv])
        measure([venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS])
        marker.write_text(REQUIREMENTS.read_text())
    return venv / "bin" / "mergekit-yaml"


def merge_command(
    mergekit: Path, recipe: Path, models: Path, out: Path, lam: float, *, dtype: str, out_dtype: str
) -> list[str | Path]:
    """Task arithmetic from start: start + λ·(end − start) + 1·(target − start). Writes the recipe (YAML) to `recipe`."""
    weights = {"end": lam, "target": 1.0}
    document = {
        "merge_method": "task_arithmetic",
        "base_model": str(models / "start"),
        "models": [{"model": str(models / role), "parameters": {"weight": weight}} for role, weight in weights.items()],
        "dtype": dtype,
        "out_dtype": out_dtype,
    }
    recipe.write_text(json.dumps(document, indent=1))
    return [mergekit, recipe, out, "--quiet"]
