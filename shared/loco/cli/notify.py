"""`--notify`: tells of a job's end on this machine.

The server calls nobody: an address of a request that it called would reach inside its network.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from loco.cli import sweep_view
from loco.cli.console import note
from loco.cli.summary import headline
from loco.contracts.errors import InvalidRequest
from loco.contracts.jobs import Job
from loco.contracts.sweeps import Sweep

NotifyOption = Annotated[
    bool,
    typer.Option("--notify", help="When it ends, ring the bell and show a desktop notification."),
]
NotifyCommandOption = Annotated[
    str | None,
    typer.Option(
        metavar="CMD",
        help="When it ends, run this command here, with LOCO_JOB_ID (a sweep's ID for a sweep), "
        "LOCO_JOB_STATUS and LOCO_JOB_ADAPTER set.",
    ),
]

#: Seconds a command of the user's may take.
_SECONDS = 60.0


@dataclass(frozen=True)
class Notice:
    """How a job's end is told of."""

    desktop: bool
    command: str | None

    def __post_init__(self) -> None:
        """Refuses a command that cannot be read or found, before anything is waited for."""
        if self.command is None:
            return
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise _wrong(self.command, str(error)) from error
        if not words or shutil.which(words[0]) is None:
            raise _wrong(self.command, "there is no such program")

    def __bool__(self) -> bool:
        return self.desktop or self.command is not None

    def of(self, job: Job | Sweep) -> None:
        """Tells of a job's or sweep's end; that it cannot is said and changes no exit code."""
        if self.desktop:
            if sys.stderr.isatty():
                sys.stderr.write("\a")
            sender = shutil.which("notify-send")
            if sender:
                _run([sender, "loco", "--", _headline(job)])
        if self.command is not None:
            told = {
                "LOCO_JOB_ID": job.id,
                "LOCO_JOB_STATUS": job.status.value,
                "LOCO_JOB_ADAPTER": job.adapter,
            }
            _run(shlex.split(self.command), told)


def _headline(ended: Job | Sweep) -> str:
    return (headline(ended) if isinstance(ended, Job) else sweep_view.headline(ended)).plain


def _run(command: list[str], told: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(told or {})},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # standard output is the command's own
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        note(f"The notification failed: {error}")
        return
    if done.returncode:
        note(
            f"The notification may have failed: {command[0]} ended with exit code "
            f"{done.returncode}."
        )


def _wrong(command: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"--notify-command {command!r:.100}: {why}.",
        param="--notify-command",
        hint="Name a program and its arguments, like --notify-command 'mail -s done me@box'. "
        "For pipes and other shell syntax write \"sh -c '…'\".",
    )
