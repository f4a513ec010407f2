"""POST /plan: what a job would take, before it is submitted."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

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
from loco_api.context import Context, Here
from loco_api.errors import responses

#: A plan takes some milliseconds; one that waits or takes longer is given up.
PLAN_SECONDS = 10.0

PlannedT = TypeVar("PlannedT")

router = APIRouter(tags=["jobs"])


@router.post(
    "/plan",
    operation_id="planJob",
    summary="Plan a job",
    dependencies=[SUBMIT, COUNTED],
    response_description="The plan with its memory and time. Nothing was started.",
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
    """How a job would train, and the memory, disk and time it would take. It is not submitted."""
    return await in_time(here, PLAN_SECONDS, lambda: preview(here.ledger, here.settings, request))


async def in_time(here: Context, seconds: float, work: Callable[[], PlannedT]) -> PlannedT:
    """Has the planner work on one of the places for plans.

    Raises:
        Busy: it waits or takes longer than `seconds`.
    """
    with anyio.move_on_after(seconds):
        return await _planned(here, work, time.monotonic() + seconds)
    raise out_of_time()


async def _planned(here: Context, work: Callable[[], PlannedT], ends: float) -> PlannedT:
    """Plans in a thread of its own: however many are asked for, the other routes have theirs.

    Who waits is answered in time; the thread sees its end by itself, and keeps its place until then.
    """
    loop, place = asyncio.get_running_loop(), object()
    begun, held = False, True

    def leave() -> None:
        nonlocal held
        if held:
            here.plans.release_on_behalf_of(place)
        held = False

    def plan() -> PlannedT:
        nonlocal begun
        begun = True
        try:
            with until(ends):
                return work()
        finally:
            with suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(leave)

    await here.plans.acquire_on_behalf_of(place)
    try:
        own = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(plan, limiter=own, abandon_on_cancel=True)
    finally:
        if not begun:
            leave()
