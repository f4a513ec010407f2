"""`loco logs`: what a stage's program and its libraries said.

loco logs last train --follow
"""

import sys
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from loco.cli.console import client, note, show_json
from loco.cli.jobs import JobArgument, JsonOption
from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.logs import LogPage
from loco.contracts.printable import printable
from loco.contracts.stages import Stage

#: How a job has ended, after "before the job".
_ENDED = {
    JobStatus.SUCCEEDED: "ended",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "was cancelled",
}
#: Seconds between two looks at a log that is being written.
_LOOK_SECONDS = 1.0


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(logs)


def logs(
    context: typer.Context,
    job_id: JobArgument,
    stage: Annotated[
        Stage | None,
        typer.Argument(help="Stage to show. Default: the one that runs, failed or came last."),
    ] = None,
    *,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Attempt to show. Default: the newest.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the stage or the job ends.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the log of a stage: what its program and libraries wrote."""
    if follow and as_json:
        raise InvalidRequest(
            "--json prints one document, but --follow keeps printing.",
            param="--json",
            hint="Give only one of them.",
        )
    with client(context) as loco:
        job = loco.job(loco.job_id(job_id))
        if follow:
            _follow(loco, job, stage, attempt)
            return
        chosen = stage or _telling(job).stage
        pages = list(_pages(loco, job.id, chosen, attempt))
    if not pages[0].attempt:
        raise _nothing(job, chosen)
    if as_json:
        text = "".join(page.text for page in pages)
        last = pages[-1].model_copy(update={"text": text, "offset": 0})
        show_json(last)
        return
    _head(pages[0])
    for page in pages:
        _print(page.text)


def _telling(job: Job) -> Task:
    """The stage a person wants to hear of: the one that runs or failed, else the last that began."""
    for wanted in (StageStatus.RUNNING, StageStatus.FAILED):
        for task in job.stages:
            if task.status is wanted:
                return task
    begun = [t for t in job.stages if t.attempt and t.status is not StageStatus.REUSED]
    return begun[-1] if begun else job.stages[0]


def _pages(loco: Client, job_id: str, stage: Stage, attempt: int | None) -> Iterator[LogPage]:
    """A log from its beginning to where it ends now."""
    page = loco.log(job_id, stage, attempt=attempt)
    yield page
    while page.text and page.next_offset < page.size:
        page = loco.log(job_id, stage, attempt=page.attempt, offset=page.next_offset)
        yield page


def _nothing(job: Job, stage: Stage) -> NotFound:
    task = job.stage(stage)
    if task is not None and task.reused_from:
        return NotFound(
            f"Stage {stage} of job {job.id} was reused from job {task.reused_from}, so it "
            "did not run.",
            hint=f"loco logs {task.reused_from} {stage}",
        )
    if job.is_terminal:
        return NotFound(
            f"Stage {stage} of job {job.id} has no log: it did not run before the job {_ENDED[job.status]}.",
            hint=f"`loco logs {job.id}` shows the stage that ran last."
            if any(t.attempt and not t.reused_from for t in job.stages)
            else f"`loco job {job.id}` says how it ended.",
        )
    return NotFound(
        f"Stage {stage} of job {job.id} has no log yet: it is "
        f"{task.status if task else 'not there'}.",
        hint=f"`loco logs {job.id} {stage} --follow` waits for it.",
    )


def _follow(loco: Client, job: Job, stage: Stage | None, attempt: int | None) -> None:
    """Prints logs as they grow: of one attempt, of a stage, or of all stages from the telling one on."""
    names = [task.stage for task in job.stages]
    if stage is not None and stage not in names:
        loco.log(job.id, stage)  # says what there is
    begin = names.index(stage or _telling(job).stage)
    for name in names[begin : begin + 1] if stage else names[begin:]:
        _follow_stage(loco, job.id, name, attempt)
        if loco.job(job.id).is_terminal and stage is None:
            return


def _follow_stage(loco: Client, job_id: str, stage: Stage, only: int | None) -> None:
    attempt, offset, told = only, 0, 0
    while True:
        page = loco.log(job_id, stage, attempt=attempt, offset=offset)
        if page.attempt and page.attempt != told:
            _head(page)
            told = page.attempt
        _print(page.text)
        attempt, offset = page.attempt or None, page.next_offset
        if page.text and page.next_offset < page.size:
            continue
        if page.ended and only is None and page.attempt < page.attempts:
            attempt, offset = page.attempt + 1, 0
            continue
        if page.ended and (only is not None or _is_over(loco.job(job_id), stage)):
            return
        time.sleep(_LOOK_SECONDS)


def _is_over(job: Job, stage: Stage) -> bool:
    """Whether no attempt of a stage follows."""
    task = job.stage(stage)
    return task is None or task.status.is_terminal


def _head(page: LogPage) -> None:
    note(f"{page.stage}, attempt {page.attempt} of {page.attempts}:")


def _print(text: str) -> None:
    """Lines as they are but for control characters; a progress bar that was redrawn is a line each time."""
    if text:
        sys.stdout.write(printable(text.replace("\r\n", "\n").replace("\r", "\n")))
        sys.stdout.flush()
