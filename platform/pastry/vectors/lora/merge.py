"""A LoRA adapter merged into the checkpoint it was trained on, in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pastry.vectors.inject import inject
from pastry.vectors.lora.extract import extract_lora


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Write W + s·B·A, rounded once to float32, as the new checkpoint `out`; memory stays at some blocks and one layer.

    Raises PastryError for an adapter that is not plain LoRA or does not fit `base`.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        change = Path(scratch, "change")
        extract_lora(adapter, None, change, name="adapter", base=base)
        inject(base, [(change, 1.0)], out, dtype="float32")
