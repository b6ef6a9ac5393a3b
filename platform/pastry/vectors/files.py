"""Outputs that appear whole or not at all, and JSON documents with clear errors."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pastry.errors import PastryError

Model = TypeVar("Model", bound=BaseModel)
MAX_DEPTH = 100
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """Give a temporary sibling of `out` to write into; on success it is fsynced and renamed onto `out`.

    On any exception the temporary is removed and `out` stays as it was. An existing empty `out` is replaced.
    Raises PastryError if `out` exists and is not an empty directory.
    """
    out = Path(os.path.abspath(out))
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    tmp = out.parent / f".{out.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
    tmp.mkdir()
    try:
        yield tmp
        for folder, _, files in os.walk(tmp):
            for file in files:
                fsync(Path(folder, file))
            fsync(Path(folder))
        try:
            os.rename(tmp, out)
        except OSError as error:
            # Somebody else finished the same output while we were writing.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                refuse_existing(out)
            raise
        fsync(out.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


@contextmanager
def resumable_directory(out: Path, identity: dict[str, Any]) -> Iterator[tuple[Path, Path]]:
    """Give (data, notes) to write into; on success `data` is fsynced and becomes `out`, and `notes` goes.

    Both lie in a hidden sibling of `out`, which an exception removes and a killed process (or Ctrl-C) leaves: the next
    call with the same `identity` finds in it what was there, one with another identity begins anew.
    Raises PastryError if `out` exists and is not an empty directory, or if another process is writing it.
    """
    out = Path(os.path.abspath(out))
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.partial"
    staging.mkdir(exist_ok=True)
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        data, notes, said = staging / "data", staging / "notes", staging / "identity.json"
        # Round trip, so that what JSON does not distinguish (tuples, lists) compares equal.
        if not said.exists() or read_json(said) != json.loads(json.dumps(identity)):
            for leftover in (data, notes):
                shutil.rmtree(leftover, ignore_errors=True)
            write_json(said, identity)
        data.mkdir(exist_ok=True)
        notes.mkdir(exist_ok=True)
        try:
            yield data, notes
            for path in [*data.rglob("*"), data]:
                fsync(path)
            refuse_existing(out)
            # The notes first: killed in between, they would speak of files that are not here any more.
            shutil.rmtree(notes)
            os.rename(data, out)
            fsync(out.parent)
            shutil.rmtree(staging)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PastryError(f"{out} is being written by another process; wait for it or choose another --out") from None


def refuse_existing(out: Path) -> None:
    """Raise PastryError if `out` exists as anything but an empty directory."""
    out = Path(out)
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise PastryError(f"{out} already exists; choose another --out or remove it")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises PastryError if it is missing, malformed, or not an object."""
    path = Path(path)
    text = read_text(path, "JSON")
    try:
        document = parse_json(text)
        _check_depth(document)
    except (ValueError, RecursionError) as error:
        raise PastryError(f"{path}: not valid JSON ({error}); restore the file from its source") from error
    if not isinstance(document, dict):
        raise PastryError(f"{path}: found a JSON {type(document).__name__}, wanted an object")
    return document


def read_text(path: Path, what: str = "UTF-8 text") -> str:
    """The text in the regular file `path`. Raises PastryError, which says `what` was wanted, if there is none."""
    # Opening a pipe would wait for ever, reading a device never end.
    if os.path.lexists(path) and not os.path.isfile(path):
        raise PastryError(f"{path}: cannot be read (not a regular file, or a link to nothing)")
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PastryError(f"{path}: no such file") from None
    except OSError as error:
        raise PastryError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PastryError(f"{path}: not valid {what} ({error}); restore the file from its source") from error


def parse_json(text: str, **hooks: Any) -> Any:
    """json.loads, but half of a surrogate pair, which no UTF-8 file can hold, is a ValueError."""
    document = json.loads(text, **hooks)
    if _SURROGATE.search(text):
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _check_depth(document: Any) -> None:
    # What is read is handed to functions that recurse: JSON's writer, pydantic, comparisons.
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for value in level for child in _children(value) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def write_json(path: Path, document: dict[str, Any], *, allow_nan: bool = False) -> None:
    """Write `document` to `path` in one step: temporary sibling, fsync, rename.

    NaN and infinities are a ValueError; `allow_nan` is for other people's documents, such as a config.json with Infinity.
    """
    path = Path(path)
    tmp = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    try:
        tmp.write_text(text, encoding="utf-8")
        fsync(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    fsync(path.parent)


def parse_model(model: type[Model], document: dict[str, Any], where: str) -> Model:
    """`document` as a pydantic `model`; PastryError, beginning with `where`, naming every key that is wrong."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [".".join(map(str, fault["loc"])) + ": " + fault["msg"] for fault in error.errors()]
        raise PastryError(f"{where}: " + "; ".join(faults)) from error


def fsync(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
