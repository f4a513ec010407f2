"""Work of which a few run at once: who waits too long for a place is told so, and no thread waits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from loco.contracts.errors import Busy


@asynccontextmanager
async def place(limiter: anyio.CapacityLimiter, seconds: float, what: str) -> AsyncIterator[None]:
    """Holds one of a limiter's places.

    Raises:
        Busy: none was free within `seconds`; the message says for `what`.
    """
    held = object()
    with anyio.move_on_after(seconds) as wait:
        await limiter.acquire_on_behalf_of(held)
    if wait.cancelled_caught:
        raise Busy(
            f"{what}: other requests are running, and none ended within {seconds:g} s.",
            hint="Ask again in a moment.",
        )
    try:
        yield
    finally:
        limiter.release_on_behalf_of(held)
