"""What `--dry-run` shows: every stage with its work, memory and disk, and what could not be checked."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pastry.commands.options import say
from pastry.pipeline.feasible import check_resources
from pastry.pipeline.forecast import Forecast, forecast
from pastry.pipeline.runner import Run
from pastry.pipeline.sizes import describe
from pastry.pipeline.storage import storage

NARROWEST = 118
"""Columns: with fewer the table would be hard to read."""
PARTS = ("weights", "gradients", "optimizer"), ("activations", "rollouts", "update")


def show_plan(run: Run, kind: str | None, as_json: bool, beside: dict[str, Any] | None = None) -> None:
    """Check and show what would be done; `beside`: what else the JSON says. Raises PastryError for what cannot work."""
    stages = run.wanted(kind)
    found = forecast(run.config, run.workers, [stage for stage in stages if not run.done(stage.name)], storage(run.config))
    notes = check_resources(found, stages, starting=False)
    rows = []
    for stage in stages:
        each = found.stages.get(stage.name)
        work = each and each.work
        row = {"stage": stage.name, "kind": stage.kind, "inputs": list(stage.inputs.values()), "done": each is None}
        row |= {"does": "" if each is None else describe(stage, work)}
        row |= {"steps": work and work.steps, "tokens": work and work.tokens, "tokens_known": work and work.known}
        row |= {"memory": each and each.memory and each.memory.document(), "disk": each and each.disk and asdict(each.disk)}
        rows.append(row)
    if as_json:
        say(True, _document(run, found, rows, notes) | (beside or {}), "")
        return
    console = Console(highlight=False, emoji=False, markup=False)
    console.width = max(console.width, NARROWEST)
    console.print(_table(rows))
    for line in _below(run, found, notes):
        console.print(line, soft_wrap=True)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("from", max_width=21, overflow="fold")
    table.add_column("does")
    for title in ("each worker", "disk + meanwhile"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        inputs = ", ".join(row["inputs"]) if len(row["inputs"]) < 3 else f"{len(row['inputs'])} stages"
        memory = _size(row["memory"]["total"]) if row["memory"] else ""
        kept, meanwhile = (row["disk"]["result"], row["disk"]["working"]) if row["disk"] else (0, 0)
        written = f"{_size(kept)} + {_size(meanwhile)}" if meanwhile else _size(kept) if kept else ""
        table.add_row(row["stage"], inputs, "done already" if row["done"] else row["does"], memory, written)
    return table


def _below(run: Run, found: Forecast, notes: list[str]) -> list[str]:
    resources, size = run.config.resources, found.model.size
    device = "a GPU" if resources.use_gpu else f"{resources.cpus_per_worker} CPU"
    lines = [f"{run.workers} worker(s) with {device} each; results in {run.directory}; nothing was run"]
    if size:
        lines.append(f"model: {_size(size.parameters).removesuffix('B').strip()} parameters, from {size.known_from}")
    largest = max((each.memory for each in found.stages.values() if each.memory), key=lambda memory: memory.total, default=None)
    if largest:
        found_parts = {part: count for part, count in largest.document().items() if count}
        states, phases = (
            ", ".join(f"{part} {_size(found_parts[part])}" for part in parts if part in found_parts) for parts in PARTS
        )
        lines.append(f"memory of a worker, in the largest stage: {states}; and one after another: {phases}")
        lines += [f"  and {_size(largest.host)} of main memory a worker"] if largest.host else []
    if found.needed is not None:
        free = f", of {_size(found.free)} free" if found.place else ""
        lines.append(f"disk: up to {_size(found.needed)}{free}; meanwhile: checkpoints, while their stage runs")
    return lines + [f"not checked: {note}" for note in notes]


def _document(run: Run, found: Forecast, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    size = found.model.size
    return {
        "directory": str(run.directory),
        "workers": run.workers,
        "model": size and asdict(size),
        "disk": {"needed": found.needed, "free": found.free},
        "not_checked": notes,
        "stages": rows,
    }


def _size(count: int) -> str:
    """Bytes in decimal units: 1.5 MB."""
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
