"""Where registered weights lie: one directory for each fingerprint, in a local directory or an object store.

A directory of the store holds what was registered and STORED, its contents, which is written last. In a local store it
appears by a rename; in an object store, which has none, what has no STORED is not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from blake3 import blake3

from pastry.errors import PastryError
from pastry.registry.client import SQLITE
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.files import atomic_directory, fsync, read_json, write_json
from pastry.vectors.fingerprint import PREFIX, fingerprint
from pastry.vectors.lora.factored import open_skill
from pastry.vectors.skill import MANIFEST_FILE

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

STORED = "stored.json"
"""{"fingerprint", "bytes": file → size, "files": file without tensors → digest, "tensors": tensor of a checkpoint → digest}."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "pastry")
"""Copies of what lies in object stores."""
LOCAL = ("", "file")


def default_store(tracking_uri: str, storage: Path | None = None) -> str:
    """PASTRY_STORE, else `store` in the run's storage, or beside the SQLite file. Raises PastryError if there is neither."""
    if given := os.environ.get("PASTRY_STORE"):
        return given
    if storage is None and tracking_uri.startswith(SQLITE):
        storage = Path(tracking_uri.removeprefix(SQLITE)).parent
    if storage is None:
        raise PastryError(
            "where should the weights lie? MLflow's server does not take gigabytes: give --store, or set PASTRY_STORE, "
            "to a directory that all machines share or to s3://bucket/prefix"
        )
    return str(storage / "store")


def put(directory: Path, wanted: str, store: str) -> str:
    """Have `directory`, whose fingerprint is `wanted`, in the store; gives the URI of its place there.

    What is there already and intact stays; what is damaged there is replaced. Files of the same file system are linked, not
    copied. Raises PastryError if the tensors are not as their digests say, naming the first that is not.
    """
    key = wanted.replace(":", "-")
    parts = urlsplit(store)
    if parts.scheme in LOCAL:
        place = Path(unquote(parts.path)).expanduser().absolute() / key
        _appear(place, wanted, lambda made: _link(directory, made, wanted))
        return place.as_uri()
    if parts.password:
        raise PastryError(
            f"{parts.scheme}://…: keys in a store's URI would stand in MLflow's tags; set AWS_ACCESS_KEY_ID instead"
        )
    location = parts._replace(path=f"{parts.path.rstrip('/')}/{key}").geturl()
    with _object_store(location) as (remote, prefix):
        _upload(directory, wanted, remote, prefix)
    return location


def local(location: str, wanted: str | None, where: str) -> Path:
    """The directory of a registered version's weights; from an object store they are fetched once, into CACHE.

    `wanted` is the fingerprint it was registered with. Documents are held against their digests here, and a checkpoint's
    tensors; a skill vector's tensors are when they are read. Raises PastryError, beginning with `where`.
    """
    parts = urlsplit(location)
    path = Path(unquote(parts.path))
    try:
        if parts.scheme not in LOCAL:
            path = CACHE.expanduser() / path.name
            if not path.is_dir():
                with _object_store(location) as (remote, prefix):
                    _appear(path, wanted, lambda made: _download(remote, prefix, made, wanted))
        if not path.is_dir():
            raise PastryError(f"registered at {path}, where no directory is any more; register it again")
        if (path / STORED).is_file():
            _check(path, wanted)
        elif wanted and (found := open_skill(path).manifest.fingerprint) != wanted:  # registered where it was made
            raise PastryError(f"registered as {wanted}, but {path} holds {found}; restore it or register it again")
    except PastryError as error:
        raise PastryError(f"{where}: {error}") from None
    return path


def copy_out(place: Path, out: Path) -> None:
    """A copy of a stored directory in the new directory `out`, its tensors verified."""
    with atomic_directory(out) as made:
        for file in _files(place):
            shutil.copyfile(file, made / file.name)
        if (made / MANIFEST_FILE).exists():
            open_skill(made).verify()


def _appear(place: Path, wanted: str, fill: Callable[[Path], None]) -> None:
    """Have `place` hold what `fill` writes and verifies, whole or not at all; of several processes one does it."""
    (place.parent / ".locks").mkdir(parents=True, exist_ok=True)
    with open(place.parent / ".locks" / place.name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _intact(place, wanted):
            return
        partial, damaged = (place.with_name(f".{place.name}.{state}") for state in ("partial", "damaged"))
        for left in (partial, damaged):  # by a killed process: nobody else is at it now
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir()
        try:
            fill(partial)
            for path in [*partial.iterdir(), partial]:
                fsync(path)
            if place.exists():
                os.rename(place, damaged)
            os.rename(partial, place)
            fsync(place.parent)
        finally:
            for left in (partial, damaged):
                shutil.rmtree(left, ignore_errors=True)


def _intact(place: Path, wanted: str) -> bool:
    try:
        _check(place, wanted, every_tensor=True)
    except PastryError:
        return False
    return True


def _contents(directory: Path, wanted: str) -> dict:
    """What STORED says of a directory; PastryError if the fingerprint of its tensors is not `wanted`."""
    tensors: dict[str, str] = {}
    if (directory / MANIFEST_FILE).exists():
        skill = open_skill(directory)
        skill.verify()
        found = skill.manifest.fingerprint
    else:
        tensors = TensorDirectory(directory).digests()
        found = fingerprint(tensors)
    if found != wanted:
        raise PastryError(f"{directory}: its fingerprint is {found}, wanted {wanted}; it changed since it was made")
    return {
        "fingerprint": wanted,
        "bytes": {file.name: file.stat().st_size for file in _files(directory)},
        "files": {file.name: _digest(file) for file in _files(directory) if file.suffix != ".safetensors"},
        "tensors": tensors,
    }


def _check(place: Path, wanted: str | None, every_tensor: bool = False) -> None:
    """Raise PastryError, naming the file or tensor, if something is not as STORED says."""
    stored = read_json(place / STORED)
    if wanted and stored["fingerprint"] != wanted:
        raise PastryError(f"registered as {wanted}, but {place} holds {stored['fingerprint']}")
    for name, digest in stored["files"].items():
        if not (place / name).is_file() or _digest(place / name) != digest:
            raise PastryError(f"file {name} in {place} is not as it was registered; register it again to repair it")
    if stored["tensors"]:
        found = TensorDirectory(place).digests()
        for name in sorted(found.keys() | stored["tensors"].keys()):
            if found.get(name) != stored["tensors"].get(name):
                raise PastryError(f"tensor {name} in {place} is not as it was registered; register it again to repair it")
    elif every_tensor:
        open_skill(place).verify()


def _files(directory: Path) -> list[Path]:
    """What is registered of a directory: its files, but for hidden ones and STORED."""
    return sorted(f for f in directory.iterdir() if f.is_file() and not f.name.startswith(".") and f.name != STORED)


def _digest(file: Path) -> str:
    return PREFIX + blake3().update_mmap(file).hexdigest()


def _link(directory: Path, made: Path, wanted: str) -> None:
    for file in _files(directory):
        try:
            os.link(file.resolve(), made / file.name)
        except OSError:  # another file system, or one without links
            shutil.copyfile(file, made / file.name)
    try:
        write_json(made / STORED, _contents(made, wanted))
    except PastryError as error:
        raise PastryError(str(error).replace(str(made), str(directory))) from None


@contextmanager
def _object_store(location: str) -> Iterator[tuple[FileSystem, str]]:
    """The file system of a URI and the path in it. S3's endpoint, region and keys come from AWS's own variables."""
    from pyarrow import ArrowException, fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")  # which pyarrow does not read
    try:
        if endpoint and location.startswith("s3://"):
            yield fs.S3FileSystem(endpoint_override=endpoint, request_timeout=60), location.removeprefix("s3://")
        else:
            yield fs.FileSystem.from_uri(location)
    except FileNotFoundError as error:
        raise PastryError(f"{location} is not there or not whole ({_first_line(error)}); register it again") from None
    except (OSError, ArrowException) as error:
        raise PastryError(f"{location}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]


def _upload(directory: Path, wanted: str, remote: FileSystem, prefix: str) -> None:
    from pyarrow import fs

    contents = _contents(directory, wanted)
    wanted_files = {f"{prefix}/{name}": size for name, size in contents["bytes"].items()}
    there = {info.path: info.size for info in remote.get_file_info([*wanted_files, f"{prefix}/{STORED}"])}
    if there.pop(f"{prefix}/{STORED}") is not None and there == wanted_files:
        return
    for file in _files(directory):
        fs.copy_files(str(file.resolve()), f"{prefix}/{file.name}", fs.LocalFileSystem(), remote)
    with remote.open_output_stream(f"{prefix}/{STORED}") as stream:
        stream.write(json.dumps(contents).encode())


def _download(remote: FileSystem, prefix: str, made: Path, wanted: str) -> None:
    with remote.open_input_stream(f"{prefix}/{STORED}") as stream:
        contents = json.loads(stream.read())
    from pyarrow import fs

    for name in contents["bytes"]:
        if Path(name).name != name:
            raise PastryError(f"{prefix}/{STORED} names the file {name!r}, which is not a plain name")
        fs.copy_files(f"{prefix}/{name}", str(made / name), remote, fs.LocalFileSystem())
    write_json(made / STORED, contents)
    _check(made, wanted, every_tensor=True)
