"""Whether a directory's tensors are, byte for byte, what was recorded when they were written."""

from dataclasses import dataclass
from pathlib import Path

from pastry.errors import PastryError
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.files import read_json
from pastry.vectors.fingerprint import block_digest, fingerprint, tensor_digest
from pastry.vectors.inject import REPORT_FILE
from pastry.vectors.rounding import block_ranges
from pastry.vectors.shards import Progress
from pastry.vectors.skill import MANIFEST_FILE, Skill


@dataclass(frozen=True)
class Verification:
    """What was found. `damaged` is empty and `problem` None if all is as recorded."""

    recorded_in: str
    tensors: int
    fingerprint: str
    """Of the tensors as they are now."""
    damaged: dict[str, dict[str, str | None]]
    """Tensor → its digest as "found" and "wanted"; None where it is not in the files, or not recorded."""
    problem: str | None
    """One line."""


def verify(path: Path, wanted: str | None = None, progress: Progress | None = None) -> Verification:
    """Recompute the digest of every tensor in `path` and compare it with what is recorded.

    A skill vector is compared with skill.json, an injected checkpoint with inject.json, and any directory with the
    fingerprint `wanted`. Covered is what the tensors are: names, dtypes, shapes, elements; not the JSON files' other words.
    `progress` is told how many bytes of how many are read. Raises PastryError for a directory that cannot be opened
    and for one of which nothing is recorded.
    """
    path = Path(path)
    digests: dict[str, str | None] = {}
    recorded_in, recorded = "--fingerprint", wanted
    if (path / MANIFEST_FILE).exists():
        directory: TensorDirectory = Skill(path)
        recorded_in, recorded = MANIFEST_FILE, directory.manifest.fingerprint
        digests = {name: tensor.digest for name, tensor in directory.manifest.tensors.items()}
    else:
        directory = TensorDirectory(path)
        if (path / REPORT_FILE).exists():
            recorded_in = REPORT_FILE
            recorded, digests = _report(path / REPORT_FILE)
    if recorded is None:
        raise PastryError(
            f"{path}: neither {MANIFEST_FILE} nor {REPORT_FILE} is here, so nothing is recorded; give --fingerprint blake3:…"
        )
    found = _digests(directory, progress)
    names = sorted(found.keys() | digests.keys()) if digests else []
    damaged = {
        name: {"found": found.get(name), "wanted": digests.get(name)} for name in names if found.get(name) != digests.get(name)
    }
    now, problem = fingerprint(found), None
    if damaged:
        tensor, digest = next(iter(damaged.items()))
        others = f" (and {len(damaged) - 1} more of {len(found)} tensors)" if len(damaged) > 1 else ""
        problem = (
            f"tensor {tensor} has digest {digest['found'] or 'none: it is not in the files'}, "
            f"{recorded_in} says {digest['wanted'] or 'nothing of it'}{others}; make or copy it again"
        )
    else:
        for source, claim in ((recorded_in, recorded), ("--fingerprint", wanted)):
            if claim is not None and claim != now:
                problem = f"the tensors' fingerprint is {now}, {source} says {claim}; make or copy it again"
    return Verification(recorded_in, len(found), now, damaged, problem)


def _report(file: Path) -> tuple[str, dict[str, str]]:
    """The fingerprint and the tensors' digests in an inject.json; no digests in one from before they were recorded."""
    report = read_json(file)
    try:
        digests = {name: tensor.get("digest") for name, tensor in report["tensors"].items()}
        return report["fingerprint"], {} if None in digests.values() else digests
    except (KeyError, TypeError, AttributeError) as error:
        raise PastryError(f"{file}: not a report of `pastry vector inject` ({error!r}); restore it or inject again") from error


def _digests(directory: TensorDirectory, progress: Progress | None) -> dict[str, str]:
    done, total = 0, sum(info.nbytes for info in directory.tensors.values())
    found = {}
    for name, info in sorted(directory.tensors.items()):
        blocks = []
        for start, stop in block_ranges(info.elements):
            stored = directory.read_block(name, start, stop)
            blocks.append(block_digest(stored))
            done += stored.nbytes
            if progress:
                progress(done, total)
        found[name] = tensor_digest(info, blocks)
    return found
