"""POST and GET /sweeps, and cancel."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from loco.contracts.errors import (
    InvalidRequest,
    NotFound,
    QuotaExceeded,
)
from loco.contracts.keys import Scope
from loco.contracts.sweeps import Sweep, SweepRequest, SweepSummary
from loco.queue.sweeps import cancel_sweep, show_sweep, submit_sweep
from loco_api.accepting import SUBMISSION, IdempotencyKey, accepted_with, tell_accepted
from loco_api.auth import COUNTED, SUBMIT, Who
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import Page

router = APIRouter(tags=["sweeps"])

SweepId = Annotated[
    str, Path(description="ID of a sweep.", examples=["sweep-20261122-143722-4f9a2c"])
]


class SweepPage(Page[SweepSummary]):
    """Sweeps without their points, newest first."""


@router.post(
    "/sweeps",
    status_code=202,
    operation_id="submitSweep",
    summary="Submit a sweep",
    dependencies=[SUBMIT, COUNTED],
    response_description="The accepted sweep. Its jobs run from now on.",
    responses={
        **accepted_with("sweep"),
        **responses(*SUBMISSION, QuotaExceeded),
    },
)
def submit_a_sweep(
    request: SweepRequest,
    response: Response,
    here: Here,
    who: Who,
    idempotency_key: IdempotencyKey = None,
) -> Sweep:
    """Accepts a sweep: one prepare, a training for each point, and a job that continues with the best.

    The server checks every point before it answers. It refuses a wrong value and names its field.
    """
    sweep, created = submit_sweep(
        here.ledger,
        here.queue,
        here.settings,
        request,
        idempotency_key=uuid.uuid4().hex if idempotency_key is None else idempotency_key,
        owner=who.owner,
        sees_all=who.scope.includes(Scope.ADMIN),
    )
    tell_accepted(response, f"/sweeps/{sweep.id}", created=created)
    return sweep


@router.get(
    "/sweeps",
    operation_id="listSweeps",
    summary="List sweeps",
    responses=responses(InvalidRequest),
)
def list_sweeps(
    here: Here,
    after: Annotated[
        str | None, Query(description="Continue after the sweep with this ID, the last of a page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Sweeps per page.")] = 20,
) -> SweepPage:
    """Sweeps, newest first, without their points."""
    page = here.ledger.sweeps.page(after=after, limit=limit)
    return SweepPage(data=tuple(page.sweeps), has_more=page.more)


@router.get(
    "/sweeps/{sweep_id}",
    operation_id="getSweep",
    summary="One sweep",
    responses=responses(NotFound, InvalidRequest),
)
def get_sweep(sweep_id: SweepId, here: Here) -> Sweep:
    """A sweep with its points: what each sets, its job, status, losses and rank."""
    return show_sweep(here.ledger, sweep_id)


@router.post(
    "/sweeps/{sweep_id}/cancel",
    operation_id="cancelSweep",
    summary="Cancel a sweep",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest),
)
def cancel_a_sweep(sweep_id: SweepId, here: Here, who: Who) -> Sweep:
    """Cancels the sweep and all its jobs. An ended sweep does not change."""
    who.check_may_change(here.ledger.sweeps.sweep(sweep_id))
    return cancel_sweep(here.ledger, sweep_id)
