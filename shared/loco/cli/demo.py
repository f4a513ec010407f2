"""`make demo`: everything on this machine, one real job from data to measured model, then stopped.

    python -m loco.cli.demo

Stages run for real each time (nothing is reused). Exit code 0 only if the job succeeded.
"""

import sys
import time

from rich.console import Console

from loco.box.stack import Stack
from loco.cli.summary import render
from loco.cli.watch import follow
from loco.client.client import Client
from loco.contracts.errors import LocoError
from loco.contracts.figures import duration
from loco.contracts.jobs import JobStatus
from loco.settings import Settings

ADAPTER, PROFILE = "math", "tiny"


def main() -> int:
    """Runs the demo and returns its exit code."""
    console = Console()
    started = time.monotonic()
    try:
        given = Settings.from_environment()
        # a folder and a port of its own: a `loco up` may be running beside it
        settings = given.model_copy(update={"data_dir": given.data_dir / "demo", "port": 0})
        with Stack(
            settings, say=lambda name, text: console.print(f"{name:<9}  {text}", soft_wrap=True)
        ) as stack:
            if not stack.wait_ready():
                raise stack.error or LocoError(
                    "The services did not get ready.", hint=f"See {settings.data_dir / 'logs'}."
                )
            with Client(stack.server) as client:
                job = client.submit(ADAPTER, profile=PROFILE, reuse=False)
                console.print(f"submitted  {ADAPTER} ({PROFILE}) as job {job.id}\n")
                job = follow(client, job.id, console)
            console.print(render(job, adapters_dir=settings.adapters_dir), "")
    except LocoError as error:
        console.print(f"error: {error.message}\nfix: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(f"demo took {duration(time.monotonic() - started)}; everything is stopped")
    console.print(f"to use the model: loco up --data-dir {settings.data_dir}", soft_wrap=True)
    return 0 if job.status is JobStatus.SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
