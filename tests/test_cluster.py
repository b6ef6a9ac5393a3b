"""cluster.yaml as Ray's cluster launcher reads it, and the cluster of `make cluster`."""

import re
import subprocess
import sys

import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs import local_cluster
from tests.conftest import ROOT
from tests.two_nodes import two_nodes


@pytest.fixture
def launcher() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_yaml_passes_rays_own_validation(launcher):
    prepared = prepare_config(launcher)
    validate_config(prepared)
    gpu = prepared["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"], prepared["max_workers"]) == (0, 4, 8, 4)
    for commands in (key for key in prepared if key.endswith("_commands")):
        subprocess.run(["bash", "-n"], input="\n".join(prepared[commands]), text=True, check=True)


def test_rays_validation_does_find_mistakes(launcher):
    launcher["max_worker"] = launcher.pop("max_workers")
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(launcher))


def test_cluster_yaml_opens_nothing_and_starts_ray_with_the_token(launcher):
    assert "security_group" not in launcher["provider"]  # Ray's own group then lets in SSH alone
    starts = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    rays = [command for command in starts if "ray start" in command]
    assert len(rays) == 2 and all(command.startswith("RAY_AUTH_MODE=token ") for command in rays)
    assert launcher["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in rays[0]
    (mlflow,) = [command for command in starts if "mlflow server" in command]
    assert "--host 127.0.0.1 " in mlflow and "0.0.0.0" not in str(launcher)
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    for image in ("head_image", "worker_image"):
        assert launcher["docker"][image].startswith(f"rayproject/ray:{pinned}-py311")


@pytest.mark.slow
def test_nodes_listen_on_loopback_alone_and_one_can_die():
    with two_nodes() as cluster:
        everything = [p for node in cluster.nodes for p in (node.process, *node.process.children(recursive=True))]
        listening = {c.laddr.ip for p in everything for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
        head, worker = cluster.nodes
        children = worker.process.children(recursive=True)
        worker.kill()
        assert not worker.alive and not any(child.is_running() for child in children) and head.alive
        replacement = cluster.add_node()
        assert {head.id, replacement.id} <= cluster.alive_nodes()
    assert not head.alive and not replacement.alive


@pytest.mark.slow
def test_make_cluster_again_says_so_and_down_ends_only_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(local_cluster, "STATE", tmp_path / ".cluster")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        local_cluster.down()
        assert "no cluster" in capsys.readouterr().out
        local_cluster.up()
        cluster = local_cluster.Cluster.load(tmp_path / ".cluster" / "cluster.json")
        local_cluster.up()
        assert "up already" in capsys.readouterr().out
        assert (tmp_path / ".cluster" / "env").read_text().startswith("export RAY_AUTH_MODE=token\n")
        local_cluster.down()
        assert not any(node.alive for node in cluster.nodes) and stranger.poll() is None
        assert not (tmp_path / ".cluster").exists() and not cluster.directory.exists()
    finally:
        stranger.kill()
        stranger.wait()
