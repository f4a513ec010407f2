"""DELETE /jobs/{id}: an ended job and what nothing else needs of its files."""

import anyio.to_thread
from fastapi import APIRouter

from loco.contracts.errors import Busy, Conflict, InvalidRequest, NotFound, UnsafePath
from loco.contracts.jobs import Job
from loco.contracts.keys import Scope
from loco.contracts.removals import Removal
from loco.running.remove import look, remove
from loco_api.auth import COUNTED, SUBMIT, Caller, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import JobId
from loco_api.places import place

#: Of waiting until two others have looked.
_SECONDS = 10.0

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/removal",
    operation_id="lookAtRemoval",
    summary="What deleting a job would free",
    dependencies=[COUNTED],
    responses=responses(NotFound, InvalidRequest, UnsafePath, Busy),
)
async def look_at_removal(job_id: JobId, here: Here) -> Removal:
    """The bytes that would become free, and what needs the job. Nothing is deleted."""

    def looked() -> Removal:
        return look(here.ledger, here.settings.adapters_dir, here.ledger.job(job_id))

    async with place(here.removals, _SECONDS, "Looking for what needs a job"):
        return await anyio.to_thread.run_sync(looked, limiter=anyio.CapacityLimiter(1))


@router.delete(
    "/jobs/{job_id}",
    operation_id="deleteJob",
    summary="Delete a job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, Conflict, Busy, InvalidRequest, UnsafePath),
)
def delete_job(job_id: JobId, here: Here, who: Who) -> Removal:
    """Deletes an ended job with its log, events and files, except what others need.

    If something needs the job, the answer is a 409 that names it. Repeated within ten minutes, the
    request gets the same answer; later a 404.
    """
    job = _job(here, who, job_id)
    if isinstance(job, Removal):
        return job
    who.check_may_change(job)
    return remove(here.ledger, here.settings.adapters_dir, job)


def _job(here: Context, who: Caller, job_id: str) -> Job | Removal:
    """The job; what went, where its owner or an admin asks for a deleted one again.

    Raises:
        NotFound: there is none, and none was deleted lately.
    """
    try:
        return here.ledger.job(job_id)
    except NotFound:
        told = here.ledger.removals.removed(job_id)
        if told is None or not (told[0] == who.owner or who.scope.includes(Scope.ADMIN)):
            raise
        return told[1]
