"""`ray job submit` on a cluster started with `ray start --head`, token authentication on."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, tiny_settings

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def cluster():
    """A head node; gives (dashboard address, environment for clients)."""
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    dashboard = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as session:
        # Another Ray on this machine may have any of the default ports.
        ports = ["--port", free_port(), "--dashboard-port", dashboard, "--ray-client-server-port", free_port()]
        ports += ["--dashboard-agent-listen-port", free_port(), "--dashboard-agent-grpc-port", free_port()]
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus", 4, "--temp-dir", session, *ports]
        command += ["--object-store-memory", 200_000_000, "--disable-usage-stats"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        head = subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True, **quiet)
        address = f"http://127.0.0.1:{dashboard}"
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=2)
                break
            except urllib.error.HTTPError:
                break  # it answers, and asks for the token
            except OSError:
                assert head.poll() is None and time.monotonic() < deadline, "the head node did not start"
                time.sleep(0.5)
        yield address, environment
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def submit(cluster, *entrypoint, **changes):
    """`ray job submit` as in the README; a fresh head node takes a moment until it accepts jobs."""
    address, environment = cluster
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", *entrypoint]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 600} | changes
    for _ in range(30):
        done = subprocess.run(command, **options)
        if "No available agent" not in done.stderr:
            return done
        time.sleep(2)
    raise AssertionError("the head node never accepted a job")


def test_the_quickstarts_job_runs_as_a_ray_job(cluster, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_settings(tmp_path / "runs") | {"sources": ["planet", "ship"]}))
    done = submit(cluster, "python", "jobs/past.py", "--config", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "past@best" in done.stdout and "succeeded" in done.stdout
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())
    assert {(point["source"], point["lambda_"]) for point in result["search"]} == {
        (source, lam) for source in ("planet", "ship") for lam in (0.0, 0.5, 1.0)
    }
    assert {"target_sft", "past@best", "control_random"} <= {row["name"] for row in result["rows"]}

    refused = submit(cluster, "python", "jobs/past.py", "--config", "jobs/absent.yaml")
    assert refused.returncode != 0 and "jobs/absent.yaml: no such file" in refused.stdout

    stranger = {key: value for key, value in cluster[1].items() if key != "RAY_AUTH_TOKEN"} | {"HOME": str(tmp_path)}
    assert submit(cluster, "true", env=stranger).returncode != 0
