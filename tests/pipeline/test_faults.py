"""Kills in the middle of SFT and of RL, on two Ray nodes: the run recovers, loses little, and ends with the same weights."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from pastry.config import load_config
from pastry.pipeline.runner import Run
from tests.conftest import ROOT
from tests.registry.conftest import MlflowServer
from tests.training.base import make_base
from tests.training.group import LAB, SEED
from tests.two_nodes import two_nodes

pytestmark = pytest.mark.slow
EVERY = 10
"""Steps between checkpoints."""
STEPS = {"sft": 200, "rl": 50}
STAGES = {"sft": "sft/planet/1", "rl": "rl/planet/1"}


def settings(storage: Path, base: Path, tracking: str | None = None) -> dict:
    return {
        "name": "faults",
        "seed": SEED,
        "storage": str(storage),
        "base": str(base),
        "domain": LAB.model_dump(),
        "sources": ["planet"],
        "target": "company",
        "sft": {"steps": STEPS["sft"], "batch_rows": 16, "row_tokens": 64, "lr": 1e-3, "log_every": 1},
        "rl": {"steps": STEPS["rl"], "questions_per_step": 8, "group_size": 4, "max_new_tokens": 12, "lr": 1e-3}
        | {"rewards": {"well_formed": 1.0}},
        "checkpoints": {"every": EVERY},
        "resources": {"workers": 2},
        "tracking": {"uri": tracking},
    }


class Driver:
    """`python jobs/rl.py` on a config: SFT, then RL; its output in `log`."""

    def __init__(self, folder: Path, base: Path, environment: dict[str, str], tracking: str | None = None, **changes):
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings(folder / "runs", base, tracking) | changes))
        self.run = Run(load_config(config))
        self.command = [sys.executable, "jobs/rl.py", "--config", config]
        self.environment, self.log = environment | {"OMP_NUM_THREADS": "1"}, folder / "log"
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def in_the_middle_of(self, kind: str) -> None:
        """Wait for the stage's second checkpoint: the first is registered by then."""
        checkpoints = self.run.work(STAGES[kind]) / "checkpoints"
        self.until(lambda: len(list(checkpoints.glob("checkpoint_*"))) >= 2)
        assert not self.run.done(STAGES[kind])

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-5000:]
            time.sleep(0.05)

    def wait(self) -> int:
        return self.process.wait(600)

    def said(self) -> str:
        return self.log.read_text()

    def fingerprints(self) -> dict[str, str]:
        return {name: self.run.marker(name)["metrics"]["fingerprint"] for name in STAGES.values()}

    def losses(self) -> list[tuple[int, int]]:
        """(steps done, step from which it went on) of every restart by itself."""
        return [
            (int(died), int(resumed))
            for died, resumed in re.findall(r"died after step (\d+);.*?going on after step (\d+)", self.said(), re.DOTALL)
        ]


def training_workers(node) -> list[psutil.Process]:
    return [each for each in node.process.children(recursive=True) if "RayTrainWorker" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cluster of two nodes with room for one worker each, a base, and the uninterrupted run."""
    base = make_base(tmp_path_factory.mktemp("base") / "model", LAB, SEED)
    with two_nodes(cpus=1) as cluster:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
        whole = Driver(tmp_path_factory.mktemp("whole"), base, environment)
        assert whole.wait() == 0, whole.said()[-5000:]
        yield cluster, environment, base, whole.fingerprints()


def test_a_killed_worker_and_a_killed_node_are_replaced(place, tmp_path):
    cluster, environment, base, expected = place
    driver = Driver(tmp_path, base, environment)
    driver.in_the_middle_of("sft")
    training_workers(cluster.nodes[0])[0].kill()
    driver.in_the_middle_of("rl")
    cluster.nodes[-1].kill()
    cluster.add_node(cpus=1)  # as an autoscaler would
    assert driver.wait() == 0, driver.said()[-5000:]
    assert driver.fingerprints() == expected
    losses = driver.losses()
    assert len(losses) == 2 and all(0 <= died - resumed <= EVERY for died, resumed in losses), driver.said()


def test_before_a_node_is_taken_away_what_it_did_is_saved(place, tmp_path):
    cluster, environment, base, expected = place
    leaving = cluster.nodes[-1]
    cluster.add_node(cpus=1)
    # No checkpoint but the one that the notice makes the workers write.
    environment |= {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
    driver = Driver(tmp_path, base, environment, checkpoints={"every": None})
    work = driver.run.work(STAGES["sft"])
    curves = work / "curves.jsonl"
    driver.until(lambda: curves.exists() and curves.stat().st_size)
    notice = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "60"]
    command = ["ray", "drain-node", "--address", cluster.gcs, "--node-id", leaving.id, *notice]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    registered = work / "checkpoints" / "checkpoint_manager_snapshot.json"
    driver.until(lambda: registered.exists() and "checkpoint_" in registered.read_text())
    leaving.kill()
    assert driver.wait() == 0, driver.said()[-5000:]
    assert driver.fingerprints() == expected
    (resumed,) = re.findall(r"going on after step (\d+)", driver.said())
    assert 0 < int(resumed) < STEPS["sft"]


def test_a_killed_driver_and_a_preempted_one_go_on_when_submitted_again(place, tmp_path):
    _, environment, base, expected = place
    server = MlflowServer(tmp_path)
    server.start()
    try:
        driver = Driver(tmp_path, base, environment, server.url)
        driver.in_the_middle_of("sft")
        driver.process.kill()
        driver.wait()
        server.stop()
        time.sleep(3)
        driver.start()
        server.start()
        driver.in_the_middle_of("rl")
        driver.process.send_signal(signal.SIGTERM)
        assert driver.wait() == 128 + signal.SIGTERM and "saving a checkpoint" in driver.said(), driver.said()[-5000:]
        driver.start()
        assert driver.wait() == 0, driver.said()[-5000:]
        assert driver.fingerprints() == expected
        assert driver.said().count("going on after step") == 2
        client = MlflowClient(server.url)
        for kind, stage in STAGES.items():
            history = client.get_metric_history(driver.run.marker(stage)["run_id"], "loss")
            assert {point.step for point in history} == set(range(1, STEPS[kind] + 1))
    finally:
        server.stop()


def test_a_full_disk_is_said_and_what_was_done_is_kept(place, tmp_path):
    *_, base, expected = place
    # A file system of its own, in a name space in which one may mount it.
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "tests.pipeline.full_disk"]
    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let users mount file systems")
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run([*command, tmp_path, base], cwd=ROOT, env=kept, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    said, found = done.stdout.rsplit("\n", 2)[:2]
    assert said.count("no space left") >= 2 and "Traceback" not in said
    assert found == " ".join(expected.values())
