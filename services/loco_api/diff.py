"""GET /jobs/{id}/diff: two jobs side by side."""

from typing import Annotated

from fastapi import APIRouter, Query

from loco.contracts.diffs import JobDiff
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import Job
from loco.grading.job_diff import compare
from loco.grading.job_records import read_records
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import JobId

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/diff",
    operation_id="diffJobs",
    summary="Compare two jobs",
    responses=responses(NotFound, InvalidRequest),
)
def diff_jobs(
    job_id: JobId,
    here: Here,
    other: Annotated[
        str,
        Query(
            alias="with",
            description="ID of the other job.",
            examples=["20261122-153000-0a1b2c"],
        ),
    ],
) -> JobDiff:
    """Shows where recipe, data, environment and outputs of two jobs differ, their scores, and a verdict."""
    first, second = here.ledger.job(job_id), _other(here, other)
    records = [
        read_records(job, here.ledger.outputs(job), here.settings.adapters_dir)
        for job in (first, second)
    ]
    return compare(*records)


def _other(here: Context, job_id: str) -> Job:
    try:
        return here.ledger.job(job_id)
    except NotFound as error:
        raise NotFound(error.message, param="with", hint=error.hint) from error
