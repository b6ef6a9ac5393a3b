"""Records on their way to a server that may be away: on disk first, then delivered in order by a thread of its own."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pastry.registry.lines import JsonLines

Record = dict[str, Any]
FOLDER = "tracking"
"""In a run's directory."""
SPOOL = "outbox.jsonl"
REFUSED = "refused.jsonl"
BATCH = 100
"""Records handed over at a time."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts, once they have doubled from one second."""


class Server(Protocol):
    """Where records go. Each may come again after a failure or a kill -9, in the same order, and must then change nothing."""

    def deliver(self, records: list[Record]) -> None: ...

    def refuses(self, error: Exception) -> bool:
        """Whether the same record would fail for ever; everything else is tried again."""

    def explain(self, error: Exception) -> str:
        """What is wrong with the server, in a few words."""


def waiting(run_directory: Path) -> bool:
    """Whether a run left records that its server has not got."""
    spool = run_directory / FOLDER / SPOOL
    return spool.is_file() and spool.stat().st_size > 0


class Outbox:
    """A queue that a spool file (JSON lines) backs: it holds what the server has not got, and is emptied when nothing waits.

    A record is with the operating system when `put` returns, so a kill -9 loses none; one delivered just before a kill may be
    delivered again. `put` neither waits for the server nor fails with it.
    """

    def __init__(self, folder: Path, server: Server, say: Callable[[str], None]):
        self.folder, self.server, self.say = folder, server, say
        folder.mkdir(parents=True, exist_ok=True)
        self.spool = JsonLines(folder / SPOOL)
        self.queue: deque[Record] = deque(self.spool.read())
        self.changed = threading.Condition()
        self.attempt = threading.Event()
        """Cuts the pause before the next attempt short."""
        self.fault: Exception | None = None
        """Why the last attempt failed; None once one has succeeded."""
        self.begun = self.failed = self.refused = 0
        """Attempts so far, the last of them that failed, and records refused."""
        self.full = self.closing = self.closed = False
        self.thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self.thread.start()

    def put(self, record: Record, document: Path | None = None) -> None:
        """Append a record; of a document a copy is taken, named `file` in the record (relative to the folder)."""
        with self.changed:
            if document:
                copy = Path("files", uuid.uuid4().hex, document.name)
                (self.folder / copy).parent.mkdir(parents=True)
                shutil.copyfile(document, self.folder / copy)
                record = record | {"file": str(copy)}
            self._write(record)
            self.queue.append(record)
            self.changed.notify_all()

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Attempt delivery now; wait until `done`, that attempt fails or time is up. Gives whether it is done."""
        with self.changed:
            begun = self.begun
            self.attempt.set()
            self.changed.wait_for(lambda: done() or self.failed > begun, seconds)
            return done()

    def settle(self, seconds: float) -> bool:
        """Wait until everything is delivered; False if it is not by then, or if the server does not answer."""
        return self.wait(lambda: not self.queue, seconds)

    def close(self, seconds: float) -> None:
        """Wait as `settle` does and stop; say what is left, if anything is."""
        self.settle(seconds)
        with self.changed:
            self.closing = True
            self.changed.notify_all()
            self.attempt.set()
        self.thread.join(seconds)  # what is under way still arrives, and not once more by the next outbox
        with self.changed:
            self.closed = True
            self.spool.close()
        if self.queue:
            trouble = self.server.explain(self.fault) if self.fault else "MLflow is slow"
            self.say(f"{trouble}; {len(self.queue)} records wait in {self.spool.path}; the next `pastry run` sends them")
        if self.refused:
            self.say(f"MLflow refused {self.refused} records; they are in {self.folder / REFUSED}")

    def _write(self, record: Record) -> None:
        try:
            self.spool.append(record)
            self.full = False
        except OSError as error:  # a full disk costs the safety of the spool, not the training
            if not self.full:
                self.say(f"{self.spool.path}: {error.strerror}; until that changes a record waits in memory alone")
            self.full = True

    def _work(self) -> None:
        pause = 1.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.closing)
                batch = list(islice(self.queue, BATCH))
                self.begun += 1
            if self.closing:
                return
            try:
                self._send(batch)
            except Exception as error:  # whatever it is: training must not notice, and the user must
                self._failed(error)
                self.attempt.wait(pause)
                self.attempt.clear()
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = 1.0
                self._sent(len(batch))

    def _send(self, batch: list[Record]) -> None:
        try:
            self.server.deliver(batch)
        except Exception as error:
            if not self.server.refuses(error):
                raise
            if len(batch) > 1:  # one of them spoils the rest
                for record in batch:
                    self._send([record])
            else:
                self.refused += 1
                with open(self.folder / REFUSED, "a") as file:
                    file.write(json.dumps(batch[0] | {"refused": str(error)}) + "\n")

    def _failed(self, error: Exception) -> None:
        with self.changed:
            if not self.fault and not self.closing:
                trouble = self.server.explain(error)
                self.say(f"{trouble}; the run goes on, and what it logs waits in {self.spool.path}")
            self.fault, self.failed = error, self.begun
            self.changed.notify_all()

    def _sent(self, count: int) -> None:
        with self.changed:
            if self.closed:  # the spool may be another outbox's by now
                return
            for _ in range(count):
                self.queue.popleft()
            if not self.queue:
                self.spool.keep(0)
                shutil.rmtree(self.folder / "files", ignore_errors=True)
            if self.fault:
                self.say("MLflow answers again")
                self.fault = None
            self.changed.notify_all()
