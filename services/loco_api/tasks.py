"""GET /tasks/{task_id}: one stage of one job."""

from typing import Annotated

from fastapi import APIRouter, Path

from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import Task
from loco_api.context import Here
from loco_api.errors import responses

router = APIRouter(tags=["jobs"])


@router.get(
    "/tasks/{task_id}",
    operation_id="getTask",
    summary="One task",
    responses=responses(NotFound, InvalidRequest),
)
def get_task(
    task_id: Annotated[
        str,
        Path(
            description="ID of a task, `JOB_ID-STAGE`.", examples=["20261122-143722-4f9a2c-train"]
        ),
    ],
    here: Here,
) -> Task:
    """Status, progress, result, artifacts and error of one stage."""
    return here.ledger.task(task_id)
