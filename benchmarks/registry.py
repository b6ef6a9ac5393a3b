"""The registry under load: registering a vector of 2 GB beside `cp`, and listing two thousand versions.

    python benchmarks/registry.py FOLDER [--other FOLDER_ON_ANOTHER_FILE_SYSTEM]

Writes benchmarks/results/registry.md. FOLDER needs 8 GB; what is made there is removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pastry.registry.catalogue import Catalogue
from pastry.registry.versions import FACTS, FINGERPRINT, LOCATION, Facts, Gain
from pastry.vectors.extract import extract
from pastry.vectors.files import write_json

RESULTS = Path(__file__).parent / "results/registry.md"
SHAPE, TENSORS = (5000, 5000), 20
"""2 GB of float32."""
ROUNDS = 3
MODELS, VERSIONS = 100, 20
GAIN = Gain(target="company", lam=0.75, n=144, before=0.5, after=0.9, mean=0.4, low=0.3, high=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--other", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as here:
        lines = registering(Path(here), arguments.other) + listing(Path(here))
    machine = f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.0f} when it ended"
    RESULTS.write_text("\n".join(["# The registry under load", "", *lines, "", f"`benchmarks/registry.py`; {machine}.", ""]))
    print(RESULTS.read_text())


def registering(here: Path, other: Path | None) -> list[str]:
    """Rows of a table: wall and CPU seconds of cp and of `register`, in turn."""
    skill = _vector(here)
    lines = ["| a vector of 2 GB, warm | wall s, median of 3 | CPU s | wall ÷ cp |", "|---|---|---|---|"]
    for where, folder in (("the same file system (links)", here), ("another file system (copies)", other)):
        if folder is None:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as place:
            catalogue = Catalogue(f"sqlite:///{here}/mlflow.db", f"{place}/store")
            copies, registrations = [], []
            for _ in range(ROUNDS):
                copies.append(_timed(lambda: subprocess.run(["cp", "-r", skill, f"{place}/copy"], check=True)))
                shutil.rmtree(f"{place}/copy")
                registrations.append(_timed(partial(catalogue.register, skill)))
                shutil.rmtree(f"{place}/store")
            (cp, cp_cpu), (wall, cpu) = (map(statistics.median, zip(*runs, strict=True)) for runs in (copies, registrations))
            lines.append(f"| `cp` to {where.split(' (')[0]} | {cp:.2f} | {cp_cpu:.2f} | 1 |")
            lines.append(f"| `register`, every digest verified, {where} | {wall:.2f} | {cpu:.2f} | {wall / cp:.2f} |")
    return lines


def listing(here: Path) -> list[str]:
    """A sentence: how long `Catalogue.list` takes."""
    catalogue = Catalogue(f"sqlite:///{here}/many.db")
    client, facts = catalogue.client, Facts(inputs={role: "blake3:" + 64 * "0" for role in ("end", "start", "base")}, gain=GAIN)
    tags = {LOCATION: "file:///store/vector", FINGERPRINT: f"blake3:{0:064x}", FACTS: facts.model_dump_json(exclude_none=True)}
    client.create_registered_model("skill-0")
    client.create_model_version("skill-0", "file:///nowhere", tags=tags | {"team": "search"}, description="x" * 1500)
    for model in range(1, MODELS):
        client.create_registered_model(f"skill-{model}")
    with sqlite3.connect(here / "many.db") as database:  # the others as copies: MLflow takes a minute for as many
        for table in ("model_versions", "model_version_tags"):
            rows = database.execute(f"SELECT * FROM {table}")
            columns = [column[0] for column in rows.description]
            rows = [dict(zip(columns, row, strict=True)) for row in rows]
            copies = [row | {"name": f"skill-{m}", "version": v} for row in rows for m, v in others()]
            slots = ", ".join(f":{column}" for column in columns)
            database.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({slots})", copies)
    catalogue.list(name="skill-0")
    runs = [_timed(catalogue.list) for _ in range(7)]
    wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    return [
        "",
        f"Listing {len(catalogue.list())} versions of {MODELS} models in SQLite: {cpu:.2f} s of CPU, {wall:.2f} s of wall time "
        f"(medians of {len(runs)}).",
    ]


def others() -> Iterator[tuple[int, int]]:
    """(model, version) of all but the first."""
    return ((m, v) for m in range(MODELS) for v in range(1, VERSIONS + 1) if (m, v) != (0, 1))


def _vector(here: Path) -> Path:
    generator = np.random.default_rng(0)
    for side in ("start", "end"):
        (here / side).mkdir()
        weights = {f"model.layers.{i}.mlp.up_proj.weight": generator.standard_normal(SHAPE, np.float32) for i in range(TENSORS)}
        save_file(weights, here / side / "model.safetensors")
        write_json(here / side / "config.json", {"model_type": "llama", "hidden_size": SHAPE[1]})
    extract(here / "end", here / "start", here / "skill", name="skill")
    for side in ("start", "end"):
        shutil.rmtree(here / side)
    return here / "skill"


def _timed(action: Callable) -> tuple[float, float]:
    """Seconds of wall time, and of CPU time of this process and its children."""
    before, started = os.times(), time.monotonic()
    action()
    after = os.times()
    return time.monotonic() - started, sum(after[:4]) - sum(before[:4])


if __name__ == "__main__":
    main()
