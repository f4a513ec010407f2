"""POST /plan: what a job would take, before it is submitted."""

import time

import anyio
import anyio.to_thread
from fastapi import APIRouter

from loco.contracts.errors import (
    BodyTooLarge,
    Busy,
    InvalidRequest,
    OutOfMemory,
    StageGap,
    UnknownAdapter,
    UnknownBaseModel,
    UnknownProfile,
)
from loco.contracts.previews import PlanRequest, Preview
from loco.planning.deadline import out_of_time, until
from loco.planning.preview import preview
from loco_api.auth import COUNTED, SUBMIT
from loco_api.context import Here
from loco_api.errors import responses

#: A plan takes some milliseconds; one that waits or takes longer is given up.
PLAN_SECONDS = 10.0

router = APIRouter(tags=["jobs"])


@router.post(
    "/plan",
    operation_id="planJob",
    summary="Plan a job",
    dependencies=[SUBMIT, COUNTED],
    response_description="The plan with its memory and time; nothing was started.",
    responses=responses(
        UnknownAdapter,
        InvalidRequest,
        UnknownProfile,
        UnknownBaseModel,
        StageGap,
        OutOfMemory,
        BodyTooLarge,
        Busy,
    ),
)
async def plan_job(request: PlanRequest, here: Here) -> Preview:
    """How a job would be trained, and the memory, disk and time it would take; it is not submitted."""
    ends = time.monotonic() + PLAN_SECONDS

    def plan() -> Preview:
        with until(ends):
            return preview(here.ledger, here.settings, request)

    # Threads of their own: however many plans are asked for, the other routes have theirs. Who waits for
    # one is given up; a thread that plans sees its end itself, and keeps its place until then.
    with anyio.move_on_after(PLAN_SECONDS):
        return await anyio.to_thread.run_sync(plan, limiter=here.plans)
    raise out_of_time()
