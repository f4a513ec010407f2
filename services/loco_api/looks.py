"""POST /looks: rows as a base model will see them, before anything is trained."""

import anyio.to_thread
from fastapi import APIRouter

from loco.contracts.errors import BodyTooLarge, Busy, InvalidRequest, UnknownBaseModel, Unseen
from loco.contracts.looks import Look, LookRequest
from loco.drafting.looking import look
from loco_api.auth import COUNTED, SUBMIT
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.places import place

#: Of waiting until the one before has ended, which takes some.
_SECONDS = 10.0

router = APIRouter(tags=["adapters"])


@router.post(
    "/looks",
    operation_id="lookAtRows",
    summary="See rows as the model will",
    dependencies=[SUBMIT, COUNTED],
    response_description="The tokens of each row, with the trained ones marked.",
    responses=responses(InvalidRequest, UnknownBaseModel, Unseen, BodyTooLarge, Busy),
)
async def look_at_rows(request: LookRequest, here: Here) -> Look:
    """Tokenizes rows with the code that training uses. Needs the training environment on the server."""
    async with place(here.looks, _SECONDS, "A look at rows"):
        own = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(look, here.settings, request, limiter=own)
