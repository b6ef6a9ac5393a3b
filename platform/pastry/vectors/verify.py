"""Whether a directory's tensors are, byte for byte, what was recorded when they were written."""

from dataclasses import dataclass
from pathlib import Path

from pastry.errors import PastryError
from pastry.vectors.checkpoint import TensorDirectory
from pastry.vectors.files import read_json
from pastry.vectors.fingerprint import fingerprint, tensor_digest
from pastry.vectors.inject import REPORT_FILE
from pastry.vectors.lora.factored import AnySkill, open_skill
from pastry.vectors.shards import Progress
from pastry.vectors.skill import MANIFEST_FILE


@dataclass(frozen=True)
class Verification:
    """What was found. `damaged` is empty and `problem` None if all is as recorded."""

    recorded_in: str
    tensors: int
    fingerprint: str | None
    """Of the tensors as they are now; None if one cannot be read."""
    damaged: dict[str, dict[str, str | None]]
    """Tensor → {"found": its digest, or why it cannot be read, "wanted": the recorded one}; None: not there."""
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
        directory: TensorDirectory | AnySkill = open_skill(path)
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
    found, unreadable = _digests(directory, progress)
    damaged = {name: {"found": reason, "wanted": digests.get(name)} for name, reason in unreadable.items()}
    for name in sorted(found.keys() | digests.keys()) if digests else []:
        if name not in damaged and found.get(name) != digests.get(name):
            damaged[name] = {"found": found.get(name), "wanted": digests.get(name)}
    now, problem = None if unreadable else fingerprint(found), None
    if damaged:
        tensor, digest = next(iter(damaged.items()))
        others = f" ({len(damaged)} tensors of {len(directory.tensors)} are damaged)" if len(damaged) > 1 else ""
        problem = (
            f"tensor {tensor}: found {digest['found'] or 'nothing'}, {recorded_in} says {digest['wanted'] or 'nothing'}"
            f"{others}; make or copy it again"
        )
    else:
        for source, claim in ((recorded_in, recorded), ("--fingerprint", wanted)):
            if claim is not None and claim != now:
                problem = f"the tensors' fingerprint is {now}, {source} says {claim}; make or copy it again"
    return Verification(recorded_in, len(directory.tensors), now, damaged, problem)


def _report(file: Path) -> tuple[str, dict[str, str]]:
    """The fingerprint and the tensors' digests in an inject.json."""
    report = read_json(file)
    try:
        return report["fingerprint"], {name: tensor["digest"] for name, tensor in report["tensors"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise PastryError(f"{file}: not a report of `pastry vector inject` ({error!r}); restore it or inject again") from error


def _digests(directory: TensorDirectory | AnySkill, progress: Progress | None) -> tuple[dict[str, str], dict[str, str]]:
    """Tensor → digest, and tensor → why it cannot be read."""
    done, total = 0, sum(info.nbytes for info in directory.tensors.values())
    found, unreadable = {}, {}
    for name, info in sorted(directory.tensors.items()):
        try:
            found[name] = tensor_digest(info, directory.block_digests(name))
        except PastryError as error:
            unreadable[name] = str(error)
        done += info.nbytes
        if progress:
            progress(done, total)
    return found, unreadable
