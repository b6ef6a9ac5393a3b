"""A real MLflow server that can be stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from typer.testing import CliRunner

from pastry.errors import PastryError


class MlflowServer:
    """`mlflow server` on a free port of this machine, its data in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), *store]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # nine processes that nothing here needs
            start_new_session=True,
        )
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "the MLflow server did not start"
                time.sleep(0.5)

    def stop(self):
        """With its workers, which may outlive it otherwise and answer."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.fixture
def server(started):
    """Up when a test begins; the data of earlier tests of the module are in it."""
    if started.process.poll() is not None:
        started.start()
    return started


@pytest.fixture
def pastry(catalogue, monkeypatch):
    """The command line, in this process, with the module's registry."""
    from pastry.cli import app

    monkeypatch.setenv("MLFLOW_TRACKING_URI", catalogue.given)

    def run(*arguments):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if isinstance(done.exception, PastryError):
            return f"error: {done.exception}"
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout

    return run
