"""Answers made of events: lines of JSON while they come, or one object with `stream: false`."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from loco_modelhost.engine.session import EngineError
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import Refusal

Event = dict[str, Any]
Merge = Callable[[list[Event]], Event]


async def respond(
    request: Request, body: Body, events: AsyncIterator[Event], merge: Merge
) -> Response:
    """The answer to a request; its work ends when the client hangs up.

    Args:
        request: the request, watched for the end of its connection.
        body: its body; `stream` is true where it is not said.
        events: the events of the answer.
        merge: makes one object of all events.

    Raises:
        Refusal: before anything was sent. Afterwards an error is a line of its own.
    """
    if body.flag("stream", default=True):
        return await unless_gone(request, _streamed(events))
    return await unless_gone(request, _whole(events, merge))


def last(events: list[Event]) -> Event:
    """The last event stands for all (progress)."""
    return events[-1]


async def answered(work: Coroutine[Any, Any, Event]) -> Response:
    """One object, once it is there."""
    return JSONResponse(await work)


async def _whole(events: AsyncIterator[Event], merge: Merge) -> Response:
    return JSONResponse(merge([event async for event in events]))


async def _streamed(events: AsyncIterator[Event]) -> Response:
    """Waits for the first event: an error until then still has a status of its own."""
    first = await anext(events)
    if first.get("done_reason") in ("load", "unload") or "_debug_info" in first:
        return await _whole(_after(first, events), last)  # one object, whatever `stream` says
    return StreamingResponse(_lines(_after(first, events)), media_type="application/x-ndjson")


async def _after(first: Event, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in events:
        yield event


async def _lines(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield _line(event)
    except Refusal as refusal:
        yield _line({"error": refusal.message})
    except (EngineError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        yield _line({"error": str(error)})


def _line(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer, or an end to the work when the client has hung up."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return JSONResponse({"error": "request canceled"}, status_code=499)
    finally:
        watcher.cancel()
        task.cancel()
