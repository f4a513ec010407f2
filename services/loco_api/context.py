"""What the routes work with, built once by the composition root."""

from dataclasses import dataclass, field
from typing import Annotated
from weakref import WeakValueDictionary

import anyio
from celery import Celery
from fastapi import Depends, Request

from loco.ledger.keys import Keys
from loco.ledger.ledger import Ledger
from loco.settings import Settings
from loco_api.streams import Streams

_PLANS = 2
_INSPECTIONS = 2


@dataclass(frozen=True)
class Context:
    """The parts of locollm an API process holds."""

    settings: Settings
    ledger: Ledger
    queue: Celery
    keys: Keys
    streams: Streams
    #: Uploads looked through at once, each in a process of its own.
    inspections: anyio.CapacityLimiter = field(
        default_factory=lambda: anyio.CapacityLimiter(_INSPECTIONS)
    )
    #: An owner's one place among those that wait for an inspection, so that nobody takes all; while in use.
    inspecting: WeakValueDictionary[str, anyio.Lock] = field(default_factory=WeakValueDictionary)
    #: Looks at rows at once, each in a process of the training environment.
    looks: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))
    #: Looks for what descends from a job, which read all jobs of a ledger.
    removals: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(2))
    #: Plans made at once, each on a thread.
    plans: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_PLANS))


async def context(request: Request) -> Context:
    """The app's context. Async, so that FastAPI spends no thread on it."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


Here = Annotated[Context, Depends(context)]
