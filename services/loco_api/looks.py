"""POST /looks: rows as a base model will see them, before anything is trained."""

import anyio.to_thread
from fastapi import APIRouter

from loco.contracts.errors import BodyTooLarge, InvalidRequest, UnknownBaseModel, Unseen
from loco.contracts.looks import Look, LookRequest
from loco.drafting.looking import look
from loco_api.auth import COUNTED, SUBMIT
from loco_api.context import Here
from loco_api.errors import responses

router = APIRouter(tags=["adapters"])


@router.post(
    "/looks",
    operation_id="lookAtRows",
    summary="See rows as the model will",
    dependencies=[SUBMIT, COUNTED],
    response_description="Each row's tokens, and those that are trained on.",
    responses=responses(InvalidRequest, UnknownBaseModel, Unseen, BodyTooLarge),
)
async def look_at_rows(request: LookRequest, here: Here) -> Look:
    """Tokenizes rows with the code that trains on them; needs the training environment here."""
    return await anyio.to_thread.run_sync(look, here.settings, request, limiter=here.looks)
