"""Runs as Ray jobs on a real cluster of two nodes with token authentication: `pastry submit` and `ray job submit`.

The run has everything that the quickstart has not: a base from disk, mid-training, two SFT stages, LoRA and ZeRO 2.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pastry.domains import load_domain
from tests.conftest import ROOT, tiny_settings
from tests.training.base import make_base
from tests.training.group import LAB, SEED
from tests.two_nodes import two_nodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    # Three CPUs a node and two a worker: two workers do not fit on one node.
    with two_nodes(cpus=3) as cluster:
        yield cluster


def write_subject(name: str, directory: Path) -> dict[str, str]:
    """The lab's documents about a subject as one's own files; two questions are asked about each."""
    lab = load_domain(name, LAB, SEED)
    rows = {"documents": [], "questions": [], "derived": []}
    for index, text in enumerate(lab.documents(1)):
        rows["documents"].append({"id": str(index), "text": text})
        rows["derived"].append({"document": str(index), "text": f"{text} {text}"})
        for asked in lab.questions(1)[2 * index : 2 * index + 2]:
            rows["questions"].append({"document": str(index), "question": asked.prompt, "answer": asked.answer})
    files = {kind: directory / f"{name}-{kind}.jsonl" for kind in rows}
    for kind, file in files.items():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
    return {kind: str(file) for kind, file in files.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A working directory: jobs/, and a tiny run on two workers."""
    directory = tmp_path_factory.mktemp("here")
    shutil.copytree(ROOT / "jobs", directory / "jobs")
    subjects = {name: write_subject(name, directory) for name in ("planet", "company")}
    settings = tiny_settings(directory / "runs")
    del settings["pretrain"]
    full = settings["sft"] | {"parallelism": "zero2"}
    adapter = full | {"lora": {"rank": 4}}
    files = {"kind": "files", "subjects": subjects, "prompt": "{question}"}
    settings |= {
        "base": str(make_base(directory / "base", LAB, SEED)),
        "domain": files | {"corpora": {"planets": subjects["planet"]["documents"]}},
        "midtrain": full | {"mixture": {"planets": 1.0}},
        "sft": adapter | {"second": adapter},
        "rl": settings["rl"] | {"parallelism": "zero2", "lora": {"rank": 4}, "rewards": {"lenient": 1.0}},
        "resources": {"workers": 2, "cpus_per_worker": 2},
    }
    (directory / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return directory


@pytest.fixture
def pastry(cluster, here):
    """Run `pastry submit tiny.yaml …` in that directory."""

    def run(*arguments, **environment) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pastry.cli", "submit", "tiny.yaml", *arguments]
        return subprocess.run(
            command, cwd=here, env=cluster.environment | environment, capture_output=True, text=True, timeout=800
        )

    return run


def test_a_run_works_on_both_nodes_and_is_found_done(cluster, pastry, here):
    asked = pastry("--dry-run", "--json")
    assert json.loads(asked.stdout)["entrypoint"] == "python jobs/past.py --config tiny.yaml", asked.stderr
    assert not (here / "runs").exists() and not cluster.state("jobs")

    done = pastry()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.startswith("tiny-1 is submitted") and "past@best" in done.stdout
    result = json.loads((here / "runs" / "tiny" / "result.json").read_text())
    assert {"target_sft", "past@best", "control_random"} <= {row["name"] for row in result["rows"]}
    workers = {actor["node_id"] for actor in cluster.state("actors") if "TrainWorker" in actor["class_name"]}
    assert workers == {node.id for node in cluster.nodes}

    again = pastry("--json")
    assert again.returncode == 0 and "everything is done already" in again.stderr
    assert json.loads(again.stdout) == {"id": "tiny-2", "status": "SUCCEEDED", "exit_code": 0}
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/past.py", "--config", "tiny.yaml"]
    plain = subprocess.run(command, cwd=here, env=cluster.environment, capture_output=True, text=True, timeout=300)
    assert plain.returncode == 0 and "everything is done already" in plain.stdout, plain.stderr


def test_a_failed_job_ends_the_command_with_its_exit_code(pastry):
    failed = pastry("name=failed", "sft.batch_rows=3")
    assert failed.returncode == 2 and "sft.batch_rows = 3 cannot be shared by 2 workers" in failed.stdout
    assert "failed-1 failed with exit code 2; its log: ray job logs failed-1" in failed.stderr
    followed = pastry("name=failed", "--follow")
    assert followed.returncode == 2 and "cannot be shared by 2 workers" in followed.stdout
    assert "no job of this run is running" in pastry("name=failed", "--stop").stderr
    assert "knows no job of this run" in pastry("name=other", "--follow").stderr


def test_a_running_job_is_left_running_not_doubled_and_stopped(cluster, pastry, here):
    long = ["name=long", "midtrain.steps=1000000"]
    command = [sys.executable, "-m", "pastry.cli", "submit", "tiny.yaml", *long]
    with subprocess.Popen(command, cwd=here, env=cluster.environment, stdout=-1, stderr=-1, text=True) as following:
        for line in following.stdout:
            if "midtrain" in line:
                break
        following.send_signal(signal.SIGINT)
        error = following.communicate(timeout=60)[1]
    assert following.returncode == 130 and "long-1 goes on; the same command with --follow shows it again" in error
    refused = pastry(*long)
    assert refused.returncode == 2 and "error: long: long-1 is at work on this run" in refused.stderr
    stopped = pastry(*long, "--stop")
    assert stopped.returncode == 0 and "long-1: stopped; submitting the same again goes on" in stopped.stdout, stopped.stderr
    assert "long-2" in pastry(*long, "--dry-run").stdout


def test_only_the_clusters_token_opens_it(cluster, pastry, tmp_path):
    nobody = {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": "token"}
    refused = pastry("--dry-run", **nobody)
    assert refused.returncode == 2 and "asks for a token, and there is none in --token-file, RAY_AUTH_TOKEN" in refused.stderr
    refused = pastry("--dry-run", **nobody, RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2 and "the token of RAY_AUTH_TOKEN is not the cluster's" in refused.stderr
    token = cluster.directory / "token"
    assert pastry("--dry-run", "--token-file", str(token), **nobody).returncode == 0
    assert os.stat(token).st_mode & 0o777 == 0o600
