"""What the scripts here share: processes measured one by one, models made and removed, results written.

Imports nothing large: on Linux a child's peak memory is never below that of the process which forked it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
PASTRY = [sys.executable, "-m", "pastry.cli"]


@dataclass
class Measured:
    seconds: float
    peak_mb: float
    """Largest resident set (10⁶ bytes), mapped file pages included."""


def measure(command: list[str | Path]) -> Measured:
    """Run `command` to its end. Raises RuntimeError with its output if it fails."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(map(str, command))} failed ({process.returncode}):\n{output.read()[-4000:]}")
    return Measured(seconds, usage.ru_maxrss * 1024 / 1e6)


@dataclass
class Case:
    """One thing to time: `commands` run one after another, write `outputs`."""

    name: str
    commands: list[list[str | Path]]
    inputs: list[Path]
    outputs: list[Path]

    def run(self) -> Measured:
        """With the inputs in the page cache as far as it holds them, and nothing waiting to be written."""
        self.clean()
        for directory in self.inputs:
            read_through(directory)
        os.sync()
        parts = [measure(command) for command in self.commands]
        return Measured(sum(part.seconds for part in parts), max(part.peak_mb for part in parts))

    def clean(self) -> None:
        for directory in self.outputs:
            shutil.rmtree(directory, ignore_errors=True)


def read_through(directory: Path) -> None:
    buffer = bytearray(1 << 22)
    for file in sorted(directory.iterdir()):
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def extract_command(models: Path, out: Path, dtype: str) -> list[str | Path]:
    return [*PASTRY, "vector", "extract", "--end", models / "end", "--start", models / "start", "--out", out, "--dtype", dtype]


def inject_command(models: Path, vector: Path, out: Path, lam: float, *options: str) -> list[str | Path]:
    return [*PASTRY, "vector", "inject", "--target", models / "target", "--skill", f"{vector}:{lam}", "--out", out, *options]


def make_models(work: Path, size_gb: float) -> tuple[Path, dict]:
    """The directory with start, end and target of this size, and its facts. What a kept run made is used again."""
    models = work / f"models-{size_gb:g}"
    marker = models / "models.json"
    if not marker.exists():
        shutil.rmtree(models, ignore_errors=True)
        print(f"making models of {size_gb:g} GB", flush=True)
        measure([sys.executable, HERE / "make_models.py", "--size", str(size_gb), "--out", models])
    return models, json.loads(marker.read_text())


@contextmanager
def workspace(arguments: argparse.Namespace) -> Iterator[Path]:
    """A directory for models and outputs, on the disk that is to be measured; removed afterwards unless it is to be kept."""
    work = arguments.work.absolute() / "pastry-vectors"
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        if not arguments.keep:
            shutil.rmtree(work)


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    scratch = Path(tempfile.gettempdir())
    made.add_argument("--work", type=Path, default=scratch, help="where the folder of models and outputs is made")
    made.add_argument("--keep", action="store_true", help="do not remove that folder; the next run uses its models again")
    made.add_argument("--results", type=Path, default=HERE.parent / "results", help="where the tables go")
    return made


def write_results(directory: Path, name: str, numbers: dict, text: str) -> None:
    """NAME.json and NAME.md, the latter printed as well."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{datetime.now(UTC).date()}; {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps({"machine": machine, **numbers}, indent=1) + "\n")
    (directory / f"{name}.md").write_text(f"{text}\n\n{machine}.\n")
    print(f"\n{text}\n\n{machine}.")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
