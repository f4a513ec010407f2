"""`loco rm`: deletes ended jobs and what nothing else needs of their files.

loco rm last --dry-run
"""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli.console import client, note, show, show_error, show_json
from loco.cli.jobs import JsonOption
from loco.client.client import Client
from loco.contracts.errors import Conflict, LocoError, NotFound
from loco.contracts.figures import size
from loco.contracts.removals import Removal


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("rm")(remove)


def remove(
    context: typer.Context,
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...",
            help="IDs of ended jobs, or a few characters of each, or `last`.",
            autocompletion=completion.ended_jobs,
        ),
    ],
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show what would be deleted, and what prevents it."),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete ended jobs with their logs and files, unless something else needs them."""
    gone: list[Removal] = []
    failed = 0
    with client(context) as loco:
        # newest first: a replay may go together with what it replays
        named = {loco.job_id(reference) for reference in references}
        for job_id in sorted(named, key=lambda each: _made(loco, each), reverse=True):
            try:
                gone.append(_looked_at(loco, job_id) if dry_run else loco.remove(job_id))
            except LocoError as error:
                show_error(error)
                failed = 2 if error.user_fault else 1
                continue
            if not as_json:
                _tell(gone[-1], dry_run=dry_run)
    if as_json:
        show_json(gone)
    elif len(gone) > 1:
        note(f"{size(sum(g.size for g in gone))} in all.")
    return failed


def _made(loco: Client, job_id: str) -> tuple[datetime, str]:
    """When a job was made, to the millisecond: IDs of one second are in no order."""
    try:
        return loco.job(job_id).created_at, job_id
    except NotFound:  # deleted already, which is asked for once more
        return datetime.min.replace(tzinfo=UTC), job_id


def _looked_at(loco: Client, job_id: str) -> Removal:
    """What would go.

    Raises:
        Conflict: the job has not ended, so nothing would.
    """
    job = loco.job(job_id)
    if not job.is_terminal:
        raise Conflict(
            f"Job {job.id} is {job.status}. Only ended jobs can be deleted.",
            param="job_id",
            hint=f"`loco cancel {job.id}` ends it.",
        )
    return loco.removal(job_id)


def _tell(removal: Removal, *, dry_run: bool) -> None:
    what = f"{size(removal.size)} in {removal.files} files"
    if not dry_run:
        show(Text(f"Job {removal.job_id} is deleted: {what} freed."))
        if not removal.cleared:
            note("The server could not delete all files yet and keeps trying. See its log.")
    elif removal.needed_by:
        show(Text(f"Job {removal.job_id} cannot be deleted. Needed by:"))
        for name in removal.needed_by:
            show(Text(f"  {name}"))
    else:
        show(Text(f"Job {removal.job_id} would free {what}."))
