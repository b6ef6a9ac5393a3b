"""Outputs that appear whole or not at all, and JSON documents with clear errors."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pastry.errors import PastryError

Model = TypeVar("Model", bound=BaseModel)


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
                _fsync(Path(folder, file))
            _fsync(Path(folder))
        try:
            os.rename(tmp, out)
        except OSError as error:
            # Somebody else finished the same output while we were writing.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                refuse_existing(out)
            raise
        _fsync(out.parent)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise


def refuse_existing(out: Path) -> None:
    """Raise PastryError if `out` exists as anything but an empty directory."""
    out = Path(out)
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise PastryError(f"{out} already exists; choose another --out or remove it")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises PastryError if it is missing, malformed, or not an object."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PastryError(f"{path}: no such file") from None
    except OSError as error:
        raise PastryError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PastryError(f"{path}: not valid JSON ({error}); restore the file from its source") from error
    if not isinstance(document, dict):
        raise PastryError(f"{path}: found a JSON {type(document).__name__}, wanted an object")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` to `path` in one step: temporary sibling, fsync, rename. NaN and infinities are a ValueError."""
    path = Path(path)
    tmp = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        tmp.write_text(text, encoding="utf-8")
        _fsync(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    _fsync(path.parent)


def parse_model(model: type[Model], document: dict[str, Any], where: str) -> Model:
    """`document` as a pydantic `model`; PastryError, beginning with `where`, naming every key that is wrong."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = [".".join(map(str, fault["loc"])) + ": " + fault["msg"] for fault in error.errors()]
        raise PastryError(f"{where}: " + "; ".join(faults)) from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
