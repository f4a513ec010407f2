"""What the routes work with, built once by the composition root."""

from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request

from loco.ledger.keys import Keys
from loco.ledger.ledger import Ledger
from loco.settings import Settings
from loco_api.streams import Streams


@dataclass(frozen=True)
class Context:
    """The parts of locollm an API process holds."""

    settings: Settings
    ledger: Ledger
    queue: Celery
    keys: Keys
    streams: Streams


async def context(request: Request) -> Context:
    """The app's context. Async, so that FastAPI spends no thread on it."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


Here = Annotated[Context, Depends(context)]
