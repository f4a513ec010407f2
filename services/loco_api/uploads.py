"""What the routes that take files share (`datasets`, `openai_api.files`)."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
from starlette.concurrency import run_in_threadpool

from loco.contracts.datasets import DataSetDetail
from loco.contracts.errors import LocoError
from loco.contracts.keys import Scope
from loco.datasets.store import DataSets
from loco.datasets.uploads import Part
from loco_api.auth import Caller
from loco_api.context import Context
from loco_api.inspection import inspect

#: Bytes that are gathered before they are written.
PIECE = 1 << 20


@asynccontextmanager
async def part_of(store: DataSets, dataset_id: str) -> AsyncIterator[Part]:
    """An upload to add to, opened and closed on a thread."""
    writing = store.writing(dataset_id, None)
    part = await run_in_threadpool(writing.__enter__)
    try:
        yield part
    finally:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(writing.__exit__, None, None, None)


async def finished(
    here: Context, store: DataSets, part: Part, owner: str
) -> tuple[DataSetDetail, bool]:
    """The data set of an upload that is all there, looked through; see `DataSets.finish`.

    Of an owner one is looked through at a time: further ones wait without a place of the others.
    """
    own = here.inspecting.setdefault(owner, anyio.Lock())
    async with own:
        return await anyio.to_thread.run_sync(store.finish, part, inspect, limiter=here.inspections)


@contextmanager
def hanging_up() -> Iterator[None]:
    """Has a refusal end the connection: the rest of a long body is not waited for."""
    try:
        yield
    except LocoError as error:
        error.headers.setdefault("Connection", "close")
        raise


def sees(who: Caller) -> str | None:
    """Whose data sets a caller sees; none: everybody's."""
    return None if who.scope.includes(Scope.ADMIN) else who.owner
