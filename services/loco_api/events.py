"""GET /jobs/{id}/events: what happened, as a page of JSON or live as server-sent events."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from loco.contracts.errors import InvalidRequest, NotFound, TooManyStreams
from loco.contracts.jobs import JobEvent
from loco_api.auth import Who
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import EventPage, JobId
from loco_api.streams import checked_id

router = APIRouter(tags=["events"])

_SSE = "text/event-stream"
#: What `checked_id` takes, for the document only: its own words say more than a pattern.
_ID: dict[str, Any] = {"pattern": r"^[0-9]{1,18}(-[0-9]{1,18})?$"}
_EXAMPLE = (
    "event: stage.progress\n"
    'data: {"id":"1795444642000-0","type":"stage.progress","at":"2026-11-23T14:37:22Z",'
    '"stage":"train","data":{"step":7,"total_steps":20,"loss":1.42}}\n'
    "id: 1795444642000-0\n\n"
)


@router.get(
    "/jobs/{job_id}/events",
    operation_id="listEvents",
    summary="Events of a job",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page. With `Accept: text/event-stream`: the events as they "
            "happen, and a comment after every 15 s of silence, until the job "
            "ends or the key stops working.",
            "content": {
                _SSE: {
                    "schema": {
                        "type": "string",
                        "description": "`id` is for Last-Event-ID, `event` is the event's type, "
                        "`data` the same JSON as in a page. If older events are "
                        "no longer kept, a `snapshot` with the job in its data "
                        "comes first.",
                    },
                    "example": _EXAMPLE,
                }
            },
        },
        204: {
            "description": "Live only: the job has ended and no more events follow. Do not reconnect."
        },
        **responses(NotFound, InvalidRequest, TooManyStreams),
    },
)
async def list_events(
    *,
    job_id: JobId,
    here: Here,
    who: Who,
    after: Annotated[
        str,
        Query(
            description="Only events after this ID.",
            examples=["1795444642000-0"],
            json_schema_extra=_ID,
        ),
    ] = "0",
    limit: Annotated[int, Query(ge=1, le=1000, description="Events per page.")] = 100,
    accept: Annotated[
        str, Header(description="`text/event-stream` asks for the live stream.")
    ] = "application/json",
    last_event_id: Annotated[
        str | None, Header(description="Live only: continue after this ID. It overrides `after`.")
    ] = None,
) -> EventPage | Response:
    """What happened to a job, oldest first."""
    after = checked_id(after, param="after")
    if _SSE in accept:
        if last_event_id:
            after = checked_id(last_event_id, param="Last-Event-ID")
        return await here.streams.open(job_id, after, who.welcome) or Response(status_code=204)
    events = await run_in_threadpool(_page, here, job_id, after, limit)
    return EventPage(data=tuple(events[:limit]), has_more=len(events) > limit)


def _page(here: Here, job_id: str, after: str, limit: int) -> list[JobEvent]:
    """One event more than asked tells whether more follow."""
    return here.ledger.events(job_id, after=after, limit=limit + 1)
