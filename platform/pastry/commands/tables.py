"""What `pastry vector inspect` and `compare` show: what the user names, opened; tables for the terminal; progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from pastry.errors import PastryError
from pastry.registry.resolve import REGISTERED, local_path
from pastry.vectors.geometry import inspection
from pastry.vectors.geometry.updates import BAND, ByModule, CheckpointUpdate, Comparison, SkillUpdate, Update, whole
from pastry.vectors.inject import InjectReport
from pastry.vectors.shards import Progress as Report
from pastry.vectors.skill import MANIFEST_FILE, Skill

BETWEEN = ".."
_WIDEST = 1000
PICTURES = (".png", ".svg", ".pdf")
Facts = ByModule[dict[str, float | None]]


def open_update(text: str) -> Update:
    """A skill vector (directory or models:/ URI), or START..END: what training changed between two checkpoints."""
    if not Path(text).is_dir():
        places = [i for i in range(1, len(text) - 2) if text.startswith(BETWEEN, i)]
        sides = [(text[:i], text[i + len(BETWEEN) :]) for i in places]
        # "../a..../b" has several places to cut it at: the one between two directories is meant.
        for start, end in sorted(sides, key=lambda pair: not all(map(_exists, pair))):
            return CheckpointUpdate(local_path(end), local_path(start))
    path = local_path(text)
    if not (path / MANIFEST_FILE).exists():
        raise PastryError(f"{text}: no {MANIFEST_FILE}, so it is no change of weights; wanted a skill vector, or START..{text}")
    update = SkillUpdate(path)
    update.weights.verify()  # geometry reads blocks, which have no digest of their own
    return update


def check_picture(file: Path | None) -> None:
    """Raise PastryError before anything is computed if a picture cannot be written to `file`."""
    if file is None:
        return
    if file.suffix not in PICTURES:
        raise PastryError(f"--plot {file}: wanted a file name that ends with {', '.join(PICTURES)}")
    if not file.absolute().parent.is_dir():
        raise PastryError(f"--plot {file}: no such directory {file.parent}")


@contextmanager
def progress_bar(what: str) -> Iterator[Report]:
    """Show on a terminal's standard error how far `what` is; the bar goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_arrived(report: InjectReport) -> None:
    """How much of λ·v arrived, a row for each tensor."""
    grid = Table("tensor", "dtype", "rounding", box=box.SIMPLE)
    for title in ("realised ratio", "relative error"):
        grid.add_column(title, justify="right")
    for name, tensor in report.tensors.items():
        numbers = ["λ·v is zero", ""]
        if tensor.realised_ratio is not None:
            numbers = [f"{tensor.realised_ratio:.4f}", f"{tensor.relative_error:.2g}"]
        grid.add_row(name, tensor.dtype, tensor.rounding, *numbers)
    _print(grid)


def show_inspection(skill: Skill, ranks: Facts | None) -> None:
    """The whole in a few lines, then a table with a row per layer and module."""
    manifest, table = skill.manifest, inspection.extents(skill)
    sums = inspection.whole(table)
    lines = [
        f"skill vector '{manifest.name}' in {skill.path}",
        f"{sums.elements:,} parameters in {len(manifest.tensors)} tensors, stored as {manifest.stored_dtype}; "
        f"{inspection.bytes_on_disk(skill):,} bytes on disk",
        f"norm {sums.norm:.4g}, RMS {sums.rms:.3g}, exact zeros {100 * sums.sparsity:.2f} %",
    ]
    if manifest.cosine_to_sft is not None:
        lines.append(f"cosine to the SFT update {manifest.cosine_to_sft:+.4f}")
    if manifest.birth:
        lines.append(manifest.birth.advice())
    hidden = {"birth", "tensors", "architecture", "name", "stored_dtype", "norm", "cosine_to_sft", "schema_version"}
    for key, value in manifest.model_dump(mode="json", exclude=hidden, exclude_none=True).items():
        if value not in ({}, []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{key.replace('_', ' ')}: {text}")
    grid = _grid("elements", "norm", "RMS", "zeros %", *(("effective rank", "stable rank") if ranks is not None else ()))
    for layer, module, cell in _rows(table):
        cells = [f"{cell.elements:,}", f"{cell.norm:.4g}", f"{cell.rms:.3g}", f"{100 * cell.sparsity:.2f}"]
        if ranks is not None:
            found = ranks.get(layer, {}).get(module, {})
            cells += ["" if found.get(key) is None else f"{found[key]:.1f}" for key in ("effective_rank", "stable_rank")]
        grid.add_row(layer, module, *cells)
    _print(*lines, grid)
    if ranks is not None:
        _print("effective rank: exp(−Σ p ln p), p = σ/Σσ (Roy, Vetterli 2007); stable rank: Σσ²/σ₁²; σ: singular values")


def show_comparison(
    names: list[str], table: ByModule[Comparison], beside: ByModule[Comparison] | None, angles: Facts | None
) -> None:
    """A row per layer and module, then the whole, then how to read them."""
    titles = ["elements", "cos(A, B)", "± by chance", "z", "", "± random"]
    titles += ["cos(A, C)"] * (beside is not None)
    titles += ["columns shared (random)", "rows shared (random)"] * (angles is not None)
    grid = _grid(*titles)
    for layer, module, cell in _rows(table):
        cells = _comparison(cell)
        if beside is not None:
            cells.append(_signed(beside[layer][module].cosine))
        if angles is not None and module in angles.get(layer, {}):
            cells += [_shared(angles[layer][module], side) for side in ("columns", "rows")]
        grid.add_row(layer, module, *cells)
    grid.add_section()
    last = _comparison(whole(table)) + ([_signed(whole(beside).cosine)] if beside is not None else [])
    grid.add_row("all", "", *last, style="bold")
    outside, rows = count_outside(table)
    _print(
        *(f"{letter} = {update}" for letter, update in zip("ABC", names, strict=False)),
        grid,
        "± by chance: 95 % of the cosines if one update's signs were random and all magnitudes as they are,",
        "             1.96·√(Σa²b²)/(‖a‖‖b‖); z: the cosine in standard deviations of that",
        "± random:    95 % of the cosines of two random directions, 1.96/√n",
        f"*            outside ± by chance: {outside} of {rows} rows, where {0.05 * rows:.1f} are expected by chance",
    )
    if angles is not None:
        _print(
            "shared:      mean cos² of the principal angles of the leading singular directions; 1: the same; random: by chance"
        )


def comparison_document(
    table: ByModule[Comparison], beside: ByModule[Comparison] | None, angles: Facts | None
) -> dict[str, Any]:
    """The same for a program: "whole", "modules" (layer → module → numbers), "rows" and "outside"."""
    modules: ByModule[dict[str, Any]] = {}
    for layer, module, cell in _rows(table):
        row = modules.setdefault(layer, {})[module] = cell.document()
        if beside is not None:
            row["cosine_beside"] = beside[layer][module].cosine
        if angles is not None:
            row["angles"] = angles.get(layer, {}).get(module)
    everything = whole(table).document() | ({"cosine_beside": whole(beside).cosine} if beside is not None else {})
    outside, rows = count_outside(table)
    return {"whole": everything, "rows": rows, "outside": outside, "modules": modules}


def count_outside(table: ByModule[Comparison]) -> tuple[int, int]:
    """Rows outside what random signs give, of those that have such a range."""
    cells = [cell for _, _, cell in _rows(table) if cell.z is not None]
    return sum(cell.outside for cell in cells), len(cells)


def _exists(text: str) -> bool:
    return text.startswith(REGISTERED) or Path(text).is_dir()


def _grid(*numbers: str) -> Table:
    grid = Table("layer", "module", box=box.SIMPLE)
    for title in numbers:
        grid.add_column(title, justify="right")
    return grid


def _rows(table: ByModule[Any]) -> Iterator[tuple[str, str, Any]]:
    return ((layer, module, cell) for layer, row in table.items() for module, cell in row.items())


def _comparison(cell: Comparison) -> list[str]:
    band = "" if cell.sign_sd is None else f"{BAND * cell.sign_sd:.2g}"
    random = "" if cell.random_sd is None else f"{BAND * cell.random_sd:.2g}"
    z = "" if cell.z is None else f"{cell.z:+.1f}"
    return [f"{cell.elements:,}", _signed(cell.cosine), band, z, "*" if cell.outside else "", random]


def _signed(value: float | None) -> str:
    if value is None:
        return "zero update"
    return f"{value:+.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:+.1e}"


def _shared(cell: dict[str, float | None], side: str) -> str:
    return "zero update" if cell[side] is None else f"{cell[side]:.3f} ({cell[f'{side}_random']:.3f})"


def _print(*things: Any) -> None:
    # A table that is wider than the terminal runs over its edge; rich would cut its cells.
    console = Console(highlight=False, emoji=False, markup=False, width=_WIDEST)
    for thing in things:
        if isinstance(thing, Table):
            console.print(thing, width=console.measure(thing).maximum)
        else:
            typer.echo(thing)
