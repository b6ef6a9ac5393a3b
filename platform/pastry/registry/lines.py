"""A file of JSON lines that is appended to, and that a killed process or a full disk leaves readable."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """What is appended is with the operating system when `append` returns: a kill -9 loses none of it."""

    def __init__(self, path: Path):
        """Opens the file, or makes it."""
        self.path = path
        self.stream = open(path, "ab+", buffering=0)  # noqa: SIM115 it stays open

    def read(self) -> list[Any]:
        """Every line; half a one at the end, which a kill left, is cut off."""
        self.stream.seek(0)
        lines, good = [], 0
        for line in self.stream.read().splitlines(keepends=True):
            try:
                lines.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:
                break
            good += len(line)
        self.stream.truncate(good)
        return lines

    def append(self, value: Any) -> None:
        """Raises OSError if the disk is full, and then leaves the file as it was."""
        end, line = os.fstat(self.stream.fileno()).st_size, json.dumps(value).encode() + b"\n"
        try:
            if self.stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self.stream.truncate(end)
            raise

    def keep(self, count: int) -> None:
        """Cut off everything after the first `count` lines."""
        self.stream.seek(0)
        self.stream.truncate(sum(map(len, self.stream.read().splitlines(keepends=True)[:count])))

    def close(self) -> None:
        """Of no use any more."""
        self.stream.close()
