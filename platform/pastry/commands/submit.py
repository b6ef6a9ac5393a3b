"""`pastry submit`: a run as a Ray job."""

from __future__ import annotations

import itertools
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from pastry.commands.options import AsJson, DryRun, say
from pastry.commands.ray_jobs import STOP_SECONDS, connect, follow_job, jobs_of, stop_job
from pastry.errors import PastryError
from pastry.pipeline.stage import KINDS

if TYPE_CHECKING:
    from pastry.config import PastConfig

app = typer.Typer()

Stage = StrEnum("Stage", [kind for kind in KINDS if kind not in ("base", "gate")])
"""Those that have a script in jobs/: the others are only done on the way to one of them."""


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="YAML settings of a run, in the working directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: key.subkey=value.", metavar="[KEY=VALUE]...")
    ] = None,
    stage: Annotated[Stage | None, typer.Option(help="Only stages of this kind, and what they depend on.")] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the cluster's token; else RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token."),
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML file with a Ray runtime_env, for example environment variables of the job.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")] = True,
    follow: Annotated[bool, typer.Option("--follow", help="Follow this run's latest job, and submit nothing.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop this run's job; it saves a checkpoint first.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Do a run as a Ray job on a copy of this directory; follow its log, end with its exit code.

    Submitting the same again resumes: finished stages are kept, training goes on from its last checkpoint.
    `ray job list`, `ray job logs` and `ray job stop` know the job, too.

    \b
    pastry submit jobs/quickstart.yaml             Ctrl-C leaves it running
    pastry submit jobs/quickstart.yaml --follow    its log again, from the beginning
    pastry submit jobs/quickstart.yaml --stop      it saves where it is, and ends
    """
    from pastry.config import load_config

    settings = load_config(config, overrides or [])
    if follow and stop:
        raise PastryError("--follow and --stop: give one of them")
    request = {
        "entrypoint": entrypoint(config, overrides or [], stage),
        "runtime_env": environment(settings, runtime_env),
        "metadata": {"pastry.run": str(settings.storage / settings.name)},
    }
    client = connect(address, token_file)
    jobs = jobs_of(client, request["metadata"])
    latest = jobs[-1] if jobs else None
    running = latest if latest and not latest.status.is_terminal() else None

    if stop:
        if not running:
            raise PastryError(f"{settings.name}: no job of this run is running on {address}")
        stop_job(client, running.submission_id, as_json)
        return
    if follow:
        if not latest:
            raise PastryError(f"{settings.name}: {address} knows no job of this run")
        follow_job(client, latest.submission_id, as_json)
        return
    if running:
        raise PastryError(
            f"{settings.name}: {running.submission_id} is at work on this run; the same command with --follow shows it, "
            "with --stop ends it"
        )
    taken = {job.submission_id for job in client.list_jobs()}
    names = (f"{settings.name}-{number}" for number in itertools.count(1))
    request["submission_id"] = next(name for name in names if name not in taken)
    if dry_run:
        text = f"would submit {request['submission_id']} to {address}: {request['entrypoint']}\nnothing was submitted"
        say(as_json, {"address": address} | request, text)
        return
    try:
        client.submit_job(**request)
    except (RuntimeError, ValueError) as error:  # as Ray says it: the directory is too large, the id was taken meanwhile
        raise PastryError(f"{address} did not take the job: {str(error).strip().splitlines()[-1]}") from None
    if wait:
        typer.echo(f"{request['submission_id']} is submitted to {address}; Ctrl-C leaves it running", err=as_json)
        follow_job(client, request["submission_id"], as_json)
    else:
        text = f"{request['submission_id']} is submitted to {address}; --follow shows it, --stop ends it"
        say(as_json, {"id": request["submission_id"], "status": "PENDING"}, text)


def entrypoint(config: Path, overrides: list[str], stage: Stage | None) -> str:
    """The shell command of the job: a script of jobs/, which must be in the working directory as the config must."""
    script = Path("jobs", f"{stage or 'past'}.py")
    if not script.is_file():
        raise PastryError(f"{script}: no such file: submit from the directory that holds Pastry's jobs/")
    here = Path.cwd()
    if not config.resolve().is_relative_to(here):
        raise PastryError(f"{config}: the cluster gets a copy of {here}, where this file is not: copy it there")
    inside = config.resolve().relative_to(here)
    return shlex.join(["python", str(script), "--config", str(inside), *overrides])


def environment(settings: PastConfig, path: Path | None) -> dict:
    """Ray's runtime_env: the working directory without what runs leave there, and what the file at `path` adds."""
    try:
        added = yaml.safe_load(path.read_text()) if path else {}
    except (OSError, yaml.YAMLError) as error:
        raise PastryError(f"--runtime-env {path}: {' '.join(str(error).split())}") from None
    if not isinstance(added, dict) or {"working_dir", "excludes"} & set(added):
        raise PastryError(f"--runtime-env {path}: expected a Ray runtime_env without working_dir and excludes")
    excludes = ["/.git", "/.venv", "/.cluster", "/runs", "/mlruns"]
    if not settings.storage.is_absolute():
        excludes.append(f"/{settings.storage}")
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)} | added.get("env_vars", {})
    return added | {"working_dir": ".", "excludes": excludes, "env_vars": variables}
