"""`make demo`: everything on this machine, one real job from data to measured model, then stopped.

    python -m loco.cli.demo

Stages run for real each time (nothing is reused). Exit code 0 only if the job succeeded.

It has a folder of its own, DATA/demo, with copies of the recipe and its data: what it builds, promotes
and writes in registry.yaml is apart from that of a `loco up` beside it.
"""

import shutil
import sys
import time
from pathlib import Path

from loco.box.stack import Stack
from loco.cli.console import stdout
from loco.cli.summary import render
from loco.cli.watch import follow
from loco.client.client import Client
from loco.contracts.errors import LocoError
from loco.contracts.figures import duration
from loco.contracts.jobs import JobStatus
from loco.recipes.resolve import RECIPE
from loco.running.publish import FILES as PUBLISHED
from loco.settings import CATALOG, Settings

ADAPTER, PROFILE = "math", "tiny"


def main() -> int:
    """Runs the demo and returns its exit code."""
    console = stdout()
    started = time.monotonic()
    try:
        given = Settings.from_environment()
        settings = apart(given)
        copy_recipe(given.adapters_dir, settings.adapters_dir)
        with Stack(
            settings, say=lambda name, text: console.print(f"{name:<9}  {text}", soft_wrap=True)
        ) as stack:
            if not stack.wait_ready():
                raise stack.error or LocoError(
                    "The services did not become ready.",
                    hint=f"Look at the logs in {settings.data_dir / 'logs'}.",
                )
            with Client(stack.server) as client:
                job = client.submit(ADAPTER, profile=PROFILE, reuse=False)
                console.print(f"submitted  {ADAPTER} ({PROFILE}) as job {job.id}\n")
                job = follow(client, job.id, console)
            console.print(render(job, adapters_dir=settings.adapters_dir), "", crop=False)
    except LocoError as error:
        console.print(f"error: {error.message}\nfix: {error.hint}")
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(f"The demo took {duration(time.monotonic() - started)}. Everything is stopped.")
    console.print(
        f"To use the model: loco up --data-dir {settings.data_dir} "
        f"--adapters-dir {settings.adapters_dir}",
        soft_wrap=True,
    )
    return 0 if job.status is JobStatus.SUCCEEDED else 1


def apart(given: Settings) -> Settings:
    """Settings with folders and a port of their own: a `loco up` may be running beside it."""
    data_dir = given.data_dir / "demo"
    return given.model_copy(
        update={"data_dir": data_dir, "adapters_dir": data_dir / "adapters", "port": 0}
    )


def copy_recipe(adapters_dir: Path, target: Path) -> None:
    """Copies what the demo's recipe is made of, not what was built from it.

    Args:
        adapters_dir: the folder with the recipes.
        target: gets the catalog of base models, the recipe and the data files beside it.
    """
    folder = adapters_dir / ADAPTER
    data = (file for file in folder.glob("*.jsonl") if file.name not in PUBLISHED)
    for file in (adapters_dir / CATALOG, folder / RECIPE, *data):
        if file.is_file():
            copy = target / file.relative_to(adapters_dir)
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_name(f".{copy.name}.part")
            shutil.copyfile(file, part)
            part.replace(copy)


if __name__ == "__main__":
    sys.exit(main())
