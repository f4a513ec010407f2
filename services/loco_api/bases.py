"""GET /bases: the base models a recipe may name, and which of them fit a card."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.errors import Busy, InvalidRequest
from loco.contracts.plans import Device
from loco.contracts.previews import AskedDevice, BaseFit
from loco.planning.bases import bases
from loco_api.auth import COUNTED
from loco_api.context import Here
from loco_api.errors import responses
from loco_api.pages import Page
from loco_api.plan import in_time

#: The whole catalog takes about two on a slow CPU, and is remembered.
_SECONDS = 20.0

router = APIRouter(tags=["adapters"])


class BasePage(Page[BaseFit]):
    """The catalog of bases, smallest first."""

    device: Device | None = Field(
        None, description="The device that `fits` is about. Null: no worker reports a device."
    )


@router.get(
    "/bases",
    operation_id="listBases",
    summary="List base models",
    dependencies=[COUNTED],
    responses=responses(InvalidRequest, Busy),
)
async def list_bases(
    here: Here,
    gpu_memory: Annotated[
        float | None,
        Query(
            gt=0,
            le=10_000,
            description="Memory of a GPU to check instead, 10^9 bytes, with one decimal.",
        ),
    ] = None,
    gpu_name: Annotated[
        str | None, Query(max_length=LONGEST_NAME, description="Name of that GPU, like `RTX 3070`.")
    ] = None,
) -> BasePage:
    """Every base of adapters/base_models.yaml, with its size, license and the smallest card for it."""
    if gpu_name is not None and gpu_memory is None:
        raise InvalidRequest(
            "gpu_name needs gpu_memory: cards with the same name come with different "
            "amounts of memory.",
            param="gpu_memory",
            hint="Add the memory in GB, like gpu_memory=8.",
        )
    asked = (
        AskedDevice(
            memory_gb=max(round(gpu_memory, 1), 0.1), **({"name": gpu_name} if gpu_name else {})
        )
        if gpu_memory is not None
        else None
    )
    found, device = await in_time(here, _SECONDS, lambda: bases(here.ledger, here.settings, asked))
    return BasePage(data=tuple(found), device=device)
