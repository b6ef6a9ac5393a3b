"""Many processes at once, and processes that are killed: every version is whole or not there, and no update is lost."""

import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from pastry.registry.catalogue import Catalogue
from pastry.registry.resolve import local_path
from pastry.vectors.skill import Skill
from tests.registry.test_catalogue import vector

pytestmark = pytest.mark.slow
PROCESSES = 8
KILLS = 8
TOUCHES = {"rename", "link", "mkdir", "fsync", "open", "commit", "rmtree", "unlink"}
"""Names of built-in functions that change a disk or a database."""

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pastry.registry.register", "pastry.vectors.extract"])


def start(function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def work(uri, folder, number):
    """What each of many does: the same vector as all the others, and one of its own in the same registered model."""
    catalogue = Catalogue(uri, str(folder / "store"))
    catalogue.register(folder / "shared", alias="champion", tags={f"seen-{number}": "yes"})
    mine = catalogue.register(folder / f"own-{number}", name="pool", alias=f"of-{number}")
    catalogue.promote(mine.uri, f"promoted-{number}")
    catalogue.promote(mine.uri, "contested")


def register_and_die(uri, folder, moment, count):
    """Register, and be killed at a moment: the so-manieth call in the registry's code or to what touches a disk."""
    passed = 0

    def watch(frame, event, argument):
        nonlocal passed
        ours = event == "call" and "/registry/" in frame.f_code.co_filename
        if ours or (event == "c_call" and argument.__name__ in TOUCHES):
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)
    Catalogue(uri, str(folder / "store")).register(folder / "vector", alias="champion", tags={"a": "1"})
    sys.setprofile(None)
    count.value = passed


def versions(catalogue, name):
    return [version for version in catalogue.list() if version.name == name]


def whole(catalogue, version):
    """It has everything that a version has, and its weights are there and undamaged."""
    assert version.facts.inputs and version.description.startswith("**What.**") and version.run_id
    Skill(local_path(version.uri, catalogue.given)).verify()


@pytest.mark.parametrize("backend", ["sqlite", "server"])
def test_many_register_and_promote_at_once(backend, tmp_path, request):
    vector(tmp_path, "shared", 99)
    for number in range(PROCESSES):
        vector(tmp_path, f"own-{number}", number)
    uri = f"sqlite:///{tmp_path}/mlflow.db" if backend == "sqlite" else request.getfixturevalue("server").url
    everybody = [start(work, uri, tmp_path, number) for number in range(PROCESSES)]
    for process in everybody:
        process.join(300)
    assert [process.exitcode for process in everybody] == [0] * PROCESSES
    catalogue = Catalogue(uri)
    (shared,) = versions(catalogue, "shared")
    assert shared.aliases == ["champion"] and shared.tags == {f"seen-{number}": "yes" for number in range(PROCESSES)}
    pool = versions(catalogue, "pool")
    assert len(pool) == PROCESSES
    for number in range(PROCESSES):
        named = {catalogue.show(f"models:/pool@{alias}-{number}").fingerprint for alias in ("of", "promoted")}
        assert named == {Skill(tmp_path / f"own-{number}").manifest.fingerprint}
    assert sum("contested" in version.aliases for version in pool) == 1
    for version in [shared, *pool]:
        whole(catalogue, version)


def test_killed_at_any_moment_nothing_is_half_done(tmp_path):
    catalogue = Catalogue(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "store"))
    count = processes.Value("i", 0)

    def attempt(folder: Path, moment: int) -> int:
        process = start(register_and_die, catalogue.given, folder, moment, count)
        process.join(300)
        return process.exitcode

    def another(number: int) -> Path:
        folder = tmp_path / f"vector-{number}"
        folder.mkdir()
        vector(folder, "vector", number)
        return folder

    assert attempt(another(1), 0) == 0, "the first one also makes the tables"
    assert attempt(another(2), 0) == 0 and count.value > 100
    points = random.Random(0).sample(range(1, count.value), KILLS)
    left_without = 0
    for moment in points:
        folder = another(100 + moment)
        assert attempt(folder, moment) == -signal.SIGKILL
        fingerprint = Skill(folder / "vector").manifest.fingerprint
        for place in folder.glob("store/blake3-*"):
            Skill(place).verify()
        found = [version for version in versions(catalogue, "vector") if version.fingerprint == fingerprint]
        left_without += not found
        for version in found:
            whole(catalogue, version)
        assert attempt(folder, 0) == 0, "the same command afterwards"
        (version,) = (version for version in versions(catalogue, "vector") if version.fingerprint == fingerprint)
        whole(catalogue, version)
        assert version.aliases == ["champion"] and version.tags == {"a": "1"}
        assert sorted(path.name for path in (folder / "store").iterdir() if path.name != ".locks") == [
            fingerprint.replace(":", "-")
        ]
    assert 0 < left_without < KILLS, "some kills came before the version was made, some after"
