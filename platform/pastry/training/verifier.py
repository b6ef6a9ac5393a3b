"""A domain's verifier in a process of its own, so that one that hangs can be killed, whatever it hangs in.

A thread would not do: a regular expression that backtracks holds the interpreter's lock, and no thread can be killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import pickle
import signal
import sys
import threading
import time

from pastry.domains.base import Domain, Verdict
from pastry.errors import PastryError
from pastry.training.completion import Completion, Failure, described

START_SECONDS = 300
FLUSH_SECONDS = 0.02
FINDINGS = ("correct", "well_formed", "lenient")
# Not fork: the training process has threads, and may hold a GPU.
_SPAWN = multiprocessing.get_context("spawn")


class Verifier:
    """Scores completions in a process that starts at once, beside whatever the caller does next, and anew when it is lost.

    The domain goes to it by pickle; PastryError if it cannot. The process ends with `close()`, and with the thread that
    made the verifier.
    """

    def __init__(self, domain: Domain, timeout_seconds: float):
        self._name, self._timeout = domain.name, timeout_seconds
        try:
            self._domain = pickle.dumps(domain)
        except Exception as error:  # pickle raises what it likes
            raise PastryError(f"domain '{domain.name}' cannot be sent to its verifier's process: {described(error)}") from None
        self._process = _Process(self._name, self._domain)

    def score(self, completions: list[Completion]) -> list[Verdict | Failure]:
        """A verdict each, or why there is none: the verifier raised, ended its process, took over `timeout_seconds`, or
        found something neither true nor false. Raises PastryError when the process cannot be started."""
        outcomes: list[Verdict | Failure] = []
        while rest := completions[len(outcomes) :]:
            received, failure = self._process.score(rest, self._timeout)
            outcomes += received
            if failure:
                guilty = self._process.position.value
                self._process.kill()
                self._process = _Process(self._name, self._domain)
                outcomes += self.score(rest[len(received) : guilty])  # their verdicts were lost with the process
                outcomes.append(failure)
        return outcomes

    def close(self) -> None:
        self._process.kill()


class _Process:
    """One life of the verifier's process."""

    def __init__(self, name: str, domain: bytes):
        self._name = name
        self._connection, theirs = _SPAWN.Pipe()
        self.position = _SPAWN.RawValue("q", 0)
        """Which completion of those sent last it is at."""
        self._process = _SPAWN.Process(target=_serve, args=(theirs, self.position), name="pastry-verifier", daemon=True)
        self._process.start()
        theirs.close()

        def send_domain():
            with contextlib.suppress(OSError):  # it ended while starting: `_await_start` says so
                self._connection.send_bytes(domain)

        # A large domain stays in the pipe until the process has imported what it needs; the caller need not wait.
        self._sender = threading.Thread(target=send_domain, daemon=True)
        self._sender.start()
        self._started = False

    def score(self, completions: list[Completion], timeout: float) -> tuple[list[Verdict | Failure], Failure | None]:
        """The outcomes until the process hung or died, if it did, and how."""
        self._await_start()
        received: list[Verdict | Failure] = []
        self.position.value = 0
        try:
            self._connection.send(completions)
            while len(received) < len(completions):
                if not self._connection.poll(timeout):
                    return received, Failure("verifier_timed_out", f"no verdict within {timeout:g} s")
                received += self._connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout)
            return received, Failure("verifier_raised", f"its process ended with exit code {self._process.exitcode}")
        return received, None

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _await_start(self) -> None:
        if self._started:
            return
        try:
            if not self._connection.poll(START_SECONDS):
                raise PastryError(f"domain '{self._name}': its verifier's process did not start within {START_SECONDS} s")
            self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise PastryError(
                f"domain '{self._name}': its verifier's process ended with exit code {self._process.exitcode} while starting; "
                "the worker's log says why. A domain's class must be importable by its name."
            ) from None
        self._sender.join()
        self._started = True


def _serve(connection, position) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not to outlive the training process, even hanging
    domain = pickle.loads(connection.recv_bytes())
    connection.send("started")
    while True:
        try:
            completions = connection.recv()
        except EOFError:
            return
        outcomes, flushed = [], time.monotonic()
        for position.value, completion in enumerate(completions):
            outcomes.append(_verified(domain, completion))
            if time.monotonic() - flushed > FLUSH_SECONDS:
                connection.send(outcomes)
                outcomes, flushed = [], time.monotonic()
        if outcomes:
            connection.send(outcomes)


def _verified(domain: Domain, completion: Completion) -> Verdict | Failure:
    try:
        verdict = domain.verify(completion.question, completion.text, completion.finished)
        for name in FINDINGS:
            value = getattr(verdict, name, None)
            if value not in (0, 1):
                return Failure("verifier_not_finite", f"{name} must be true or false, found {value!r}")
        return Verdict(mode=str(verdict.mode), **{name: bool(getattr(verdict, name)) for name in FINDINGS})
    except Exception as error:
        return Failure("verifier_raised", described(error))
