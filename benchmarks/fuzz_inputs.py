"""Hostile inputs: damaged model directories, skill vectors, recipes and λ rules, each through the real operation.

    .venv/bin/python benchmarks/fuzz_inputs.py --count 100000 --seed 0

Every outcome must be success or one PastryError: no other exception, no hang, nothing written outside the output's directory,
nothing unpickled, no memory taken on a header's word. Headers are also read by the safetensors library, which must agree
(but for what `read_header` says it is stricter about). Exit status 1 on a finding, whose input is saved.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.fuzz_targets import TARGETS, Target
from pastry.errors import PastryError

SECONDS = 5
MEMORY = 1 << 30
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.mkfifo"}
NEVER = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "ctypes.dlopen"}


class Hang(BaseException):
    """An input took longer than SECONDS."""


@dataclass(frozen=True)
class Finding:
    """An input that ended otherwise than it may."""

    target: str
    index: int
    what: str
    damaged: dict[str, bytes]


class Watch:
    """What the code under test must not do, seen through audit events; an audit hook stays, so `root` switches it."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.offences: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if self.root is None:
            return
        if event in NEVER:
            self.offences.append(f"{event} {args!r:.200}")
        elif event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._check_path(event, args[0])
        elif event in WRITES:
            # What is removed relative to an open directory was checked when that was opened.
            for path in args if args[-1] == -1 or os.path.isabs(args[0]) else ():
                self._check_path(event, path)

    def _check_path(self, event: str, path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if not f"{os.path.abspath(os.fsdecode(path))}/".startswith(f"{self.root}/"):
            self.offences.append(f"{event} of {path!r}")


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Address space for MEMORY bytes more than now, and a time-out signal."""

    def hang(*_: object) -> None:
        raise Hang

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, hang)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def attempt(run: Callable[[], str | None], watch: Watch, root: Path) -> tuple[str, str | None]:
    """("accepted" or "refused", what is wrong or None)."""
    watch.root, watch.offences = str(root), []
    outcome, wrong = "accepted", None
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        try:
            wrong = run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except PastryError as error:
        outcome = "refused"
        try:
            str(error).encode()
        except UnicodeEncodeError:
            wrong = f"the message cannot be printed: {str(error)!r:.300}"
    except Hang:
        wrong = f"hangs: not done after {SECONDS} s\n{traceback.format_exc()}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        wrong = traceback.format_exc(limit=-6)
    finally:
        watch.root = None
    return outcome, "; ".join(watch.offences) or wrong


def fuzz(count: int, seed: int, targets: list[type[Target]] = TARGETS) -> tuple[Counter, list[Finding]]:
    """`count` damaged inputs, spread over the targets by their share; what became of them."""
    torch.set_num_threads(1)
    outcomes: Counter = Counter()
    findings: list[Finding] = []
    # In memory: most of the time would go into waiting for a disk.
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        ready = [target(Path(folder) / target.__name__) for target in targets]
        for target in ready:
            # Compiles and loads what comes late; recipes are damaged always.
            for choice in range(20):
                target.choice = Random(choice)
                with contextlib.suppress(PastryError):
                    target.run()
                target.restore()
        watch = Watch()
        with limits():
            shares = [target.share for target in ready]
            for index in range(count):
                rng = Random(f"{seed}:{index}")
                target = rng.choices(ready, shares)[0]
                faulthandler.dump_traceback_later(20 * SECONDS, exit=True)
                damaged = target.damage(rng)
                outcome, wrong = attempt(target.run, watch, target.root)
                wrong = wrong or target.left_behind()
                target.restore()
                outcomes[type(target).__name__, "FINDING" if wrong else outcome] += 1
                if wrong:
                    findings.append(Finding(type(target).__name__, index, wrong, damaged))
        faulthandler.cancel_dump_traceback_later()
    return outcomes, findings


def save(findings: list[Finding], seed: int, folder: Path) -> None:
    """One directory per finding: what happened, and the damaged files."""
    for finding in findings:
        where = folder / f"{finding.target}-{seed}-{finding.index}"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        (where / "what.txt").write_text(finding.what, errors="backslashreplace")
        for name, content in finding.damaged.items():
            (where / name).write_bytes(content)


def main() -> int:
    """The command line; its result is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="", help="names, separated by commas; all if empty")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    chosen = [target for target in TARGETS if not options.targets or target.__name__ in options.targets.split(",")]
    began = time.monotonic()
    outcomes, findings = fuzz(options.count, options.seed, chosen)
    save(findings, options.seed, options.save)
    seconds = time.monotonic() - began
    for target in chosen:
        name = target.__name__
        print(f"{name:12}", *(f"{kind} {outcomes[name, kind]:7d}  " for kind in ("accepted", "refused", "FINDING")))
    for what, number in Counter(finding.what.strip().splitlines()[-1][:160] for finding in findings).most_common(20):
        print(f"{number:6d} × {what}")
    print(json.dumps({"count": options.count, "seed": options.seed, "findings": len(findings), "seconds": round(seconds, 1)}))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
