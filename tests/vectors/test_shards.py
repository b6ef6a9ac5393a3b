import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pastry.errors import PastryError
from pastry.vectors.checkpoint import checkpoint_fingerprint
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
from pastry.vectors.rounding import BLOCK, Scratch
from pastry.vectors.safetensors_format import TensorSpec
from pastry.vectors.shards import plan_shards, sharded_output
from tests.vectors.conftest import load, random_tensors, same_bits

SPECS = [TensorSpec(name, "float32", (BLOCK + 5,)) for name in "abcdef"]
SHARDS = plan_shards("model", SPECS, SPECS[0].nbytes)
LAYERS = {f"model.layers.{i}.mlp.up_proj.weight": (600, 500) for i in range(40)}


class Count:
    """Numbers that tell their place; counts the blocks it was asked for, and fails at one if told to."""

    def __init__(self, fail_at: str | None = None):
        self.fail_at, self.blocks = fail_at, []

    def block(self, spec: TensorSpec, start: int, stop: int, scratch: Scratch):
        self.blocks.append((spec.name, start))
        if spec.name == self.fail_at:
            raise PastryError(f"tensor {spec.name} is damaged")
        values = scratch("values", np.float32, stop - start)
        values[:] = np.arange(start, stop) + ord(spec.name)
        return values, start

    def record(self, spec: TensorSpec, facts: list[int]):
        return {"starts": facts}


def write(out: Path, work: Count, identity: str = "first", **options) -> dict:
    with sharded_output(out, SHARDS, lambda: work, {"what": identity}, **options) as (_, records):
        return records


def test_blocks_land_where_they_belong(tmp_path):
    seen = []
    records = write(tmp_path / "out", Count(), progress=lambda done, total: seen.append((done, total)))
    assert records == {name: {"starts": [0, BLOCK]} for name in "abcdef"}
    for name, tensor in load(tmp_path / "out").items():
        assert torch.equal(tensor, torch.arange(BLOCK + 5) + float(ord(name)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"model-{i:05d}-of-00006.safetensors" for i in range(1, 7)),
        "model.safetensors.index.json",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    total = sum(spec.nbytes for spec in SPECS)
    assert seen[-1] == (total, total) and sorted(seen) == seen


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(PastryError, match="tensor d is damaged"):
        write(tmp_path / "out", Count(fail_at="d"))
    assert list(tmp_path.iterdir()) == []


def interrupted(out: Path, identity: str = "first") -> None:
    """As if the process had died after three shards: an exception that is not an Exception leaves everything in place."""

    class Killed(BaseException):
        pass

    class Dies(Count):
        def record(self, spec, facts):
            if spec.name == "d":
                raise Killed
            return super().record(spec, facts)

    with pytest.raises(Killed):
        write(out, Dies(), identity)


def test_a_restart_does_the_rest_only(tmp_path):
    out = tmp_path / "out"
    interrupted(out)
    assert not out.exists()
    again = Count()
    records = write(out, again)
    assert {name for name, _ in again.blocks} == {"d", "e", "f"}
    assert records.keys() == set("abcdef")
    write(tmp_path / "whole", Count())
    assert same_bits(load(out), load(tmp_path / "whole"))


def test_a_restart_of_something_else_begins_anew(tmp_path):
    interrupted(tmp_path / "out")
    again = Count()
    write(tmp_path / "out", again, "second")
    assert {name for name, _ in again.blocks} == set("abcdef")


def test_one_writer_at_a_time_and_room_on_the_disk(tmp_path, monkeypatch):
    with (
        sharded_output(tmp_path / "out", SHARDS, Count, {}),
        pytest.raises(PastryError, match="out is being written by another process"),
    ):
        write(tmp_path / "out", Count())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(PastryError, match=r"0\.0 GB are needed, 0\.0 GB are free; make room"):
        write(tmp_path / "other", Count())


def test_a_full_disk_is_one_clear_error(save, tmp_path):
    path = save("c", random_tensors(0, shapes=LAYERS))
    extract(save("end", random_tensors(1, shapes=LAYERS)), path, tmp_path / "v", name="v")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({10**6}, {10**6})); "
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pastry.cli import main; main()"
    arguments = ["vector", "inject", "--target", str(path), "--skill", str(tmp_path / "v"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot be written (File too large)" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*out*"))


CHILD = """
import sys
from pathlib import Path
from pastry.vectors.extract import extract
from pastry.vectors.inject import inject
folder = Path(sys.argv[2])
print("ready", flush=True)
if sys.argv[1] == "extract":
    extract(folder / "end", folder / "start", folder / "out", name="v", max_shard_bytes=4_000_000)
else:
    inject(folder / "start", [(folder / "v", 1.0)], folder / "out", max_shard_bytes=4_000_000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["extract", "inject"])
def test_killed_at_any_moment_the_output_is_absent_or_right(what, save, tmp_path):
    start, end = random_tensors(0, shapes=LAYERS), random_tensors(1, shapes=LAYERS)
    save("start", start), save("end", end)
    extract(tmp_path / "end", tmp_path / "start", tmp_path / "v", name="v")
    wanted = {"extract": checkpoint_fingerprint(tmp_path / "v")}
    inject(tmp_path / "start", [(tmp_path / "v", 1.0)], tmp_path / "whole")
    wanted["inject"] = checkpoint_fingerprint(tmp_path / "whole")
    out, notes = tmp_path / "out", tmp_path / ".out.partial" / "notes"
    draw = random.Random(0)
    longest, found = 2.0, {"killed": 0, "resumed": 0, "complete": 0}
    kept: dict[str, tuple[int, int]] = {}
    while found["killed"] < 25:
        child = subprocess.Popen([sys.executable, "-c", CHILD, what, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        began = time.monotonic()
        try:
            child.wait(draw.uniform(0, longest))
            longest = time.monotonic() - began
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            found["killed"] += 1
        # Finished shards of the run before are not written again.
        if out.exists():
            assert checkpoint_fingerprint(out) == wanted[what]
            report = json.loads((out / ("skill.json" if what == "extract" else "inject.json")).read_text())
            assert report["fingerprint"] == wanted[what]
            for name, state in kept.items():
                assert (os.stat(out / name).st_ino, os.stat(out / name).st_mtime_ns) == state
            found["complete"] += 1
            found["resumed"] += bool(kept)
            kept = {}
            shutil.rmtree(out)
        elif notes.exists():
            shards = [notes.parent / "data" / note.stem for note in notes.glob("[!.]*.json")]
            states = {shard.name: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards}
            assert kept.items() <= states.items()
            kept = states
    assert found["complete"] >= 3 and found["resumed"] >= 1, found
