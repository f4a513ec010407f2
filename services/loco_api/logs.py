"""GET /jobs/{id}/logs/{stage}: what a stage's program and its libraries said, page by page."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from loco.contracts.errors import InvalidRequest, NotFound, UnsafePath
from loco.contracts.logs import LONGEST_PAGE, SHORTEST_PAGE, LogPage
from loco.contracts.stages import Stage
from loco.running.logs import read_log
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import JobId

router = APIRouter(tags=["jobs"])


@router.get(
    "/jobs/{job_id}/logs/{stage}",
    operation_id="readLog",
    summary="Log of a stage",
    responses=responses(NotFound, InvalidRequest, UnsafePath),
)
def get_log(
    *,
    job_id: JobId,
    stage: Annotated[Stage, Path(description="One of the job's stages.")],
    here: Here,
    attempt: Annotated[
        int | None,
        Query(
            ge=1,
            le=2**31,
            description="Which attempt, counting those with a log. Default: the newest.",
        ),
    ] = None,
    offset: Annotated[
        int,
        Query(ge=0, le=2**53, description="Byte to start at: `next_offset` of the page before."),
    ] = 0,
    limit: Annotated[
        int, Query(ge=SHORTEST_PAGE, le=LONGEST_PAGE, description="Bytes of the log per page.")
    ] = LONGEST_PAGE // 4,
) -> LogPage:
    """A piece of the log, also of a running attempt. Ask again at `next_offset` until `ended` is true and `size` is reached."""
    return read_log(
        here.settings.adapters_dir,
        here.ledger.job(job_id),
        stage,
        attempt=attempt,
        offset=offset,
        limit=limit,
    )
