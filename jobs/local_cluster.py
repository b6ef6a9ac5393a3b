"""A Ray cluster on one machine: several `ray start`, token authentication on, listening on loopback only.

python jobs/local_cluster.py up      two nodes, and how to submit to them; again: says that they are up   (make cluster)
python jobs/local_cluster.py down    ends these nodes, and no other Ray on the machine                    (make cluster-down)
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pastry.errors import PastryError

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".cluster"
START_SECONDS = 120
STOP_SECONDS = 15


@dataclass(frozen=True)
class Node:
    """One `ray start --block` and everything that descends from it."""

    process: psutil.Process
    id: str
    """Ray's own name for it, in hexadecimal digits."""

    @property
    def alive(self) -> bool:
        return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE

    def kill(self) -> None:
        """As when a machine loses its power: every process at once, without a farewell."""
        if not self.alive:
            return
        # A job's driver leads a session of its own: the process group alone would spare it.
        everything = [self.process, *self.process.children(recursive=True)]
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everything, timeout=STOP_SECONDS)

    def stop(self) -> None:
        """Let Ray end it; kill what is left after a while."""
        if self.alive:
            self.process.terminate()
            with suppress(psutil.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.kill()


@dataclass
class Cluster:
    """Nodes that were started under `directory`, which holds the token and each node's session; the first is the head."""

    directory: Path
    gcs_port: int
    dashboard_port: int
    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def start(cls, directory: Path, nodes: int = 2, cpus: int = 4) -> Cluster:
        """Start the nodes, each with `cpus` logical CPUs, and wait until the cluster takes jobs.

        `directory` must be short: Ray's sockets lie in it, and a socket's path has at most 107 characters.
        Raises PastryError, with what Ray said, if it does not come up; nothing is left running then.
        """
        token = directory / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        cluster = cls(directory, free_port(), free_port())
        try:
            for _ in range(nodes):
                cluster.add_node(cpus)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def gcs(self) -> str:
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables by which Ray's clients find the cluster and its token."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            # Ray's switch for machines that are no cluster: 127.0.0.1 stays 127.0.0.1, on the head and for drivers,
            # where Ray would else put the machine's outward address, and listen to the network.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with the cluster's settings, and `python` and `ray` those of this Python."""
        kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
        return kept | self.settings | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def add_node(self, cpus: int = 4) -> Node:
        """Start one more node and wait until the cluster counts it (for the first one: until it takes jobs)."""
        number, before = len(self.nodes), self.alive_nodes()
        environment = self.environment
        agent_port = free_port()
        # Another Ray on this machine, or the other node, may have any of the default ports.
        options = {
            "--num-cpus": cpus,
            "--object-store-memory": 200_000_000,
            "--temp-dir": self.directory / str(number),
            "--dashboard-agent-listen-port": agent_port,
            "--dashboard-agent-grpc-port": free_port(),
            "--runtime-env-agent-port": free_port(),
            "--metrics-export-port": free_port(),
        }
        if number == 0:
            options |= {"--port": self.gcs_port, "--dashboard-port": self.dashboard_port}
            options |= {"--ray-client-server-port": free_port()}
        else:
            # With that switch a second node is refused: it goes without, by another name of this machine and with a hook.
            options |= {"--address": f"0.0.0.0:{self.gcs_port}"}
            environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_START_HOOK": "jobs.local_cluster.stay_on_loopback"}
        # By `-m` and not by the `ray` script: the hook is importable then, in this process and not in those it starts.
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += ["--head"] if number == 0 else []
        command += [str(part) for option in options.items() for part in option]
        log = self.directory / f"node{number}.log"
        with open(log, "wb") as out:
            process = psutil.Popen(
                command, env=environment, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        deadline = time.monotonic() + START_SECONDS
        try:
            while not (fresh := self.alive_nodes() - before) or not listens(agent_port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PastryError(f"node {number} did not start; its output:\n{log.read_text()[-3000:]}")
                time.sleep(0.3)
        except BaseException:
            Node(process, "").kill()
            raise
        self.nodes.append(Node(process, fresh.pop()))
        return self.nodes[-1]

    def alive_nodes(self) -> set[str]:
        """The ids of the nodes that the head counts as alive; none as long as it does not answer."""
        try:
            return {node["node_id"] for node in self.state("nodes") if node["state"] == "ALIVE"}
        except OSError:
            return set()

    def state(self, what: str) -> list[dict]:
        """A table of Ray's state API as `ray list` shows it: nodes, actors, jobs … Raises OSError if nothing answers."""
        headers = {"Authorization": f"Bearer {(self.directory / 'token').read_text()}"}
        request = urllib.request.Request(f"{self.dashboard}/api/v0/{what}?detail=True", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)["data"]["result"]["result"]

    def stop(self) -> None:
        """End every node, the head last."""
        for node in reversed(self.nodes):
            node.stop()

    def save(self, path: Path) -> None:
        nodes = [{"id": node.id, "pid": node.process.pid, "created": node.process.create_time()} for node in self.nodes]
        ports = {"gcs_port": self.gcs_port, "dashboard_port": self.dashboard_port}
        path.write_text(json.dumps({"directory": str(self.directory), **ports, "nodes": nodes}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Cluster:
        """As saved, with those of its nodes that still run."""
        saved = json.loads(path.read_text())
        cluster = cls(Path(saved["directory"]), saved["gcs_port"], saved["dashboard_port"])
        for node in saved["nodes"]:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(node["pid"])
                if process.create_time() == node["created"]:  # else the number went to another process
                    cluster.nodes.append(Node(process, node["id"]))
        return cluster


def stay_on_loopback(params, head: bool) -> None:
    """Ray's RAY_START_HOOK: the node is known by, and listens on, the loopback address."""
    params.node_ip_address = params.node_name = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def up() -> None:
    """Start the cluster of `make cluster` unless it is up, and say how to use it."""
    if (STATE / "cluster.json").exists():
        cluster = Cluster.load(STATE / "cluster.json")
        if len(cluster.nodes) == len(cluster.alive_nodes()) == 2:
            print(f"the cluster is up already: {cluster.dashboard}")
            explain()
            return
        print("the cluster is not whole: it is ended, and started again")
        down()
    print("starting two nodes …", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, see Cluster.start
    try:
        cluster = Cluster.start(directory)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    STATE.mkdir(exist_ok=True)
    (STATE / ".gitignore").write_text("*\n")
    cluster.save(STATE / "cluster.json")
    exports = "".join(f"export {key}={value}\n" for key, value in cluster.settings.items())
    (STATE / "env").write_text(f"{exports}unset RAY_ADDRESS RAY_AUTH_TOKEN\n")
    print(f"up: 2 nodes; dashboard {cluster.dashboard}, token in {cluster.directory / 'token'}")
    explain()


def explain() -> None:
    print(f"next:  . {os.path.relpath(STATE / 'env')}      (address and token, for Ray's commands and ours)")
    print("       .venv/bin/pastry submit jobs/quickstart.yaml")
    print("       .venv/bin/ray job submit --working-dir . -- python jobs/past.py --config jobs/quickstart.yaml")
    print("end:   make cluster-down")


def down() -> None:
    """End the cluster of `make cluster`, if there is one."""
    if not (STATE / "cluster.json").exists():
        print("no cluster of `make cluster` is up")
        return
    cluster = Cluster.load(STATE / "cluster.json")
    cluster.stop()
    shutil.rmtree(cluster.directory, ignore_errors=True)
    shutil.rmtree(STATE)
    print(f"ended {len(cluster.nodes)} nodes")


if __name__ == "__main__":
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except PastryError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left running")
