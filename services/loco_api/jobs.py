"""POST and GET /jobs, cancel, retry and replay."""

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Response

from loco.contracts.errors import (
    BodyTooLarge,
    Conflict,
    DataError,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    RedisUnavailable,
    StageGap,
)
from loco.contracts.jobs import Job, JobStatus, StageStatus
from loco.contracts.keys import Scope
from loco.contracts.requests import JobRequest, ReplayRequest
from loco.ledger.ledger import Hint
from loco.planning.waiting import waiting
from loco.queue.celery_app import send_hint
from loco.queue.replay import replay
from loco.queue.submission import submit
from loco_api.accepting import SUBMISSION, IdempotencyKey, accepted_with, tell_accepted
from loco_api.auth import COUNTED, SUBMIT, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import JobId, JobLinePage, JobPage

logger = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])


@router.post(
    "/jobs",
    status_code=202,
    operation_id="submitJob",
    summary="Submit a job",
    dependencies=[SUBMIT, COUNTED],
    response_description="The accepted job. Its stages run from now on.",
    responses={
        **accepted_with("job"),
        **responses(*SUBMISSION),
    },
)
def submit_job(
    request: JobRequest,
    response: Response,
    here: Here,
    who: Who,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Accepts a job and answers at once; a worker does the work."""
    job, created = submit(
        here.ledger,
        here.queue,
        here.settings,
        request,
        idempotency_key=idempotency_key,
        owner=who.owner,
        sees_all=who.scope.includes(Scope.ADMIN),
    )
    return _accepted(_in_line(here, job), response, created=created)


@router.get(
    "/jobs",
    operation_id="listJobs",
    summary="List jobs",
    responses=responses(InvalidRequest),
)
def list_jobs(
    here: Here,
    after: Annotated[
        str | None, Query(description="Continue after the job with this ID, the `last` of a page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs per page.")] = 20,
    status: Annotated[JobStatus | None, Query(description="Only jobs with this status.")] = None,
    adapter: Annotated[str | None, Query(description="Only jobs of this adapter.")] = None,
) -> JobPage:
    """Jobs, newest first."""
    page = here.ledger.page(after=after, limit=limit, status=status, adapter=adapter)
    return JobPage(
        data=tuple(page.jobs),
        has_more=page.more,
        unreadable=tuple(page.unreadable),
        last=page.last,
    )


@router.get(
    "/jobs/ids",
    operation_id="listJobIds",
    summary="Find IDs by a few characters",
    responses=responses(InvalidRequest),
)
def list_job_ids(
    here: Here,
    who: Who,
    *,
    like: Annotated[
        str,
        Query(
            max_length=128,
            description="Only jobs whose ID, or the last part of it, starts with this.",
            examples=["4f9a"],
        ),
    ] = "",
    mine: Annotated[bool, Query(description="Only jobs of this key's owner.")] = False,
    limit: Annotated[int, Query(ge=1, le=100, description="Return at most this many.")] = 20,
) -> JobLinePage:
    """Jobs in one line each, newest first. For short IDs, `last` and completion in a shell."""
    found = here.ledger.lines(like=like, owner=who.owner if mine else None, limit=limit + 1)
    return JobLinePage(data=tuple(found[:limit]), has_more=len(found) > limit)


@router.get(
    "/jobs/{job_id}",
    operation_id="getJob",
    summary="One job",
    responses=responses(NotFound, InvalidRequest),
)
def get_job(job_id: JobId, here: Here) -> Job:
    """A job with its stages: status, progress, result, error and artifacts of each."""
    return _in_line(here, here.ledger.job(job_id))


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="cancelJob",
    summary="Cancel a job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest),
)
def cancel_job(job_id: JobId, here: Here, who: Who) -> Job:
    """Stops a job in any state. Running training saves a checkpoint. An ended job does not change."""
    who.check_may_change(here.ledger.job(job_id))
    return here.ledger.cancel(job_id)


@router.post(
    "/jobs/{job_id}/retry",
    operation_id="retryJob",
    summary="Retry a job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, Conflict, InvalidRequest),
)
def retry_job(job_id: JobId, here: Here, who: Who) -> Job:
    """Continues a failed or cancelled job from the stage that did not finish."""
    who.check_may_change(here.ledger.job(job_id))
    job = here.ledger.retry(job_id)
    for task in job.stages:
        if task.status is StageStatus.QUEUED:
            send_hint(here.queue, Hint(job_id=job.id, stage=task.stage))
    return job


@router.post(
    "/jobs/{job_id}/replay",
    status_code=202,
    operation_id="replayJob",
    summary="Run a job again",
    dependencies=[SUBMIT, COUNTED],
    response_description="The accepted job. Its stages run from now on.",
    responses={
        **accepted_with("job"),
        **responses(
            NotFound,
            InvalidRequest,
            StageGap,
            DataError,
            Conflict,
            IdempotencyConflict,
            BodyTooLarge,
        ),
    },
)
def replay_job(
    *,
    job_id: JobId,
    response: Response,
    here: Here,
    who: Who,
    request: ReplayRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Accepts a job with the same spec and inputs as another. It reuses none of its results.

    `GET /jobs/{id}/diff?with=NEW` shows what differs.
    """
    job, created = replay(
        here.ledger,
        here.queue,
        here.settings,
        job_id,
        request or ReplayRequest(),
        idempotency_key=idempotency_key,
        owner=who.owner,
        sees_all=who.scope.includes(Scope.ADMIN),
    )
    return _accepted(job, response, created=created)


def _in_line(here: Context, job: Job) -> Job:
    """A job that says where it stands in line, if it waits and that can be told."""
    try:
        return job.model_copy(update={"waiting": waiting(here.ledger, job)})
    except RedisUnavailable as error:  # the job itself was read or accepted: that is what was asked
        logger.warning("Cannot read the line that job %s waits in: %s", job.id, error)
        return job


def _accepted(job: Job, response: Response, *, created: bool) -> Job:
    tell_accepted(response, f"/jobs/{job.id}", created=created)
    return job
