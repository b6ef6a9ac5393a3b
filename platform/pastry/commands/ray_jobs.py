"""Talking to a cluster's jobs: the token, the connection, following and stopping a job."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pastry.commands.options import say
from pastry.errors import PastryError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

STOP_SECONDS = 300
"""What a job has to save a checkpoint after it was told to stop; Ray's own default of 3 s would kill it before."""


def connect(address: str, token_file: Path | None) -> JobSubmissionClient:
    """A client that was answered. Raises PastryError, saying which token was sent, if it was not."""
    if not address.startswith(("http://", "https://")):
        raise PastryError(f"--address {address}: expected the dashboard's, http://HOST:PORT")
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # it would override the argument
    token = choose_token(token_file)
    logging.disable(logging.INFO)  # Ray's client tells of every package and socket
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise PastryError(
            f"{address}: the token of {token} is not the cluster's"
            if token
            else f"{address}: the cluster asks for a token, and there is none in --token-file, RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise PastryError(
            f"{address}: no Ray cluster answers there ({reason}); `make cluster` starts one on this machine, --address or "
            "RAY_API_SERVER_ADDRESS names another"
        ) from None


def choose_token(token_file: Path | None) -> str | None:
    """Make Ray send a token where there is one, and say where it is from. Ray looks in the same places in this order,
    but in a client only with RAY_AUTH_MODE=token."""
    named, default = os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token"
    if token_file:
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ |= {"RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_AUTH_MODE": "token"}
        source, path = f"--token-file {token_file}", token_file
    elif os.environ.get("RAY_AUTH_TOKEN"):
        source, path = "RAY_AUTH_TOKEN", None
    elif named:
        source, path = f"RAY_AUTH_TOKEN_PATH ({named})", Path(named)
    elif default.is_file():
        source, path = str(default), default
    else:
        return None
    if path and not path.is_file():
        raise PastryError(f"{source}: no such file; it should hold the cluster's token")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    return source


def jobs_of(client: JobSubmissionClient, metadata: dict[str, str]) -> list[JobDetails]:
    """The jobs of a run that were submitted here, oldest first."""
    mine = [job for job in client.list_jobs() if job.submission_id and metadata.items() <= (job.metadata or {}).items()]
    return sorted(mine, key=lambda job: job.start_time)


def stop_job(client: JobSubmissionClient, job: str, as_json: bool) -> None:
    typer.echo(f"stopping {job}; it may take {STOP_SECONDS} s to save where it is …", err=True)
    client.stop_job(job)
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(1)
    text = f"{job}: {status.value.lower()}; submitting the same again goes on where it stopped"
    say(as_json, {"id": job, "status": status.value}, text)


def follow_job(client: JobSubmissionClient, job: str, as_json: bool) -> None:
    """Show the job's log until it ends, and exit as it did: with its driver's exit code."""
    import aiohttp

    async def show() -> None:
        async for lines in client.tail_job_logs(job):
            typer.echo(lines, nl=False, err=as_json)

    try:
        asyncio.run(show())
        while not (info := client.get_job_info(job)).status.is_terminal():  # set a moment after the log's end
            time.sleep(0.2)
    except KeyboardInterrupt:
        typer.echo(f"\n{job} goes on; the same command with --follow shows it again, with --stop ends it", err=True)
        raise typer.Exit(130) from None
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        raise PastryError(f"lost the connection while {job} ran ({error}); the same command with --follow shows it") from None
    code = info.driver_exit_code or 0
    if as_json:
        say(True, {"id": job, "status": info.status.value, "exit_code": info.driver_exit_code}, "")
    if info.status == "SUCCEEDED":
        return
    if info.status == "STOPPED":
        typer.echo(f"{job} was stopped; submitting the same again goes on from there", err=True)
    else:
        # Without an exit code the job's command was never started: its log is empty, and Ray says why.
        reason = f"failed with exit code {code}" if code else "failed: " + " ".join((info.message or "").split())[-500:]
        typer.echo(f"{job} {reason}; its log: ray job logs {job} --address {client.get_address()}", err=True)
    raise typer.Exit(code if code > 0 else 128 - code if code < 0 else 1)
