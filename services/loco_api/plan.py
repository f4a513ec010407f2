"""POST /plan: what a job would take, before it is submitted."""

from fastapi import APIRouter

from loco.contracts.errors import (
    BodyTooLarge,
    InvalidRequest,
    OutOfMemory,
    StageGap,
    UnknownAdapter,
    UnknownBaseModel,
    UnknownProfile,
)
from loco.contracts.previews import PlanRequest, Preview
from loco.planning.preview import preview
from loco_api.auth import COUNTED, SUBMIT
from loco_api.context import Here
from loco_api.errors import responses

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
    ),
)
def plan_job(request: PlanRequest, here: Here) -> Preview:
    """How a job would be trained, and the memory, disk and time it would take; it is not submitted."""
    return preview(here.ledger, here.settings, request)
