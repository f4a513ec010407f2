"""`loco rm`: deletes ended jobs and what nothing else needs of their files, or a version.

loco rm last --dry-run
loco rm math --version 2
"""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli.console import client, note, show, show_error, show_json
from loco.cli.jobs import JsonOption
from loco.client.client import Client
from loco.contracts.errors import Conflict, InvalidRequest, LocoError, NotFound
from loco.contracts.figures import size
from loco.contracts.removals import Removal, VersionRemoval, way_out


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("rm")(remove)


def remove(
    context: typer.Context,
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...",
            help="IDs of ended jobs, or a few characters of each, or `last`. With --version: "
            "name of an adapter.",
            autocompletion=completion.ended_jobs,
        ),
    ],
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show what would be deleted, and what prevents it."),
    ] = False,
    number: Annotated[
        int | None,
        typer.Option(
            "--version",
            min=1,
            help="Delete this version of an adapter instead: `loco rm math --version 2`. Its "
            "model leaves Ollama. After that you can delete its job.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --version: delete it even if it serves. Needs an admin key."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete ended jobs with their logs and files, unless something else needs them. Or a version."""
    if number is not None:
        return _remove_version(
            context, references, number, force=force, dry_run=dry_run, as_json=as_json
        )
    if force:
        raise InvalidRequest(
            "--force is for versions.",
            param="--force",
            hint="Write `loco rm NAME --version N --force`. What needs a job is deleted first.",
        )
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


def _remove_version(
    context: typer.Context,
    names: list[str],
    number: int,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Deletes a version, and says how its files go."""
    if len(names) != 1:
        raise InvalidRequest(
            f"--version belongs to one adapter, but the line names {len(names)}.",
            param="--version",
            hint=f"Write `loco rm NAME --version {number}`.",
        )
    if dry_run:
        raise InvalidRequest(
            "--dry-run is for jobs. Deleting a version frees only its model in Ollama.",
            param="--dry-run",
            hint=f"`loco versions {names[0]}` shows what serves.",
        )
    with client(context) as loco:
        gone = loco.remove_version(names[0], number, force=force)
    if as_json:
        show_json(gone)
    else:
        _tell_version(gone)
    return 0


def _tell_version(gone: VersionRemoval) -> None:
    taken = gone.candidate + (f" and {gone.model}:latest" if gone.stopped else "")
    verb = "are" if gone.stopped else "is"
    if gone.cleared:
        show(Text(f"Version {gone.version} of {gone.adapter} is deleted: {taken} {verb} gone."))
    else:
        show(Text(f"Version {gone.version} of {gone.adapter} is deleted."))
        note(f"Ollama did not answer. {taken} {verb} taken out as soon as it does.")
    note(f"Its files stay with job {gone.job}. `loco rm {gone.job}` deletes them.")


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
        note(way_out(removal.job_id, removal.needed_by))
    else:
        show(Text(f"Job {removal.job_id} would free {what}."))
