"""Server-sent events of a job: live, resumable, bounded.

Each stream holds one Redis connection and reads the job's event stream from there, at the pace at
which its client takes it: a slow client holds back nothing but itself, and is given up after
`SEND_SECONDS`. A stream ends after the event that ends its job, or when its key no longer opens.
"""

import logging
import re
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import redis.asyncio
import redis.exceptions
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from loco.contracts.errors import InvalidRequest, RedisUnavailable, TooManyStreams
from loco.contracts.jobs import JobEvent, JobStatus
from loco.ledger.connection import OPTIONS
from loco.ledger.ledger import Ledger

log = logging.getLogger(__name__)

#: Open streams a process serves; each holds a connection to Redis.
LIMIT = 200
#: A comment leaves after so long without an event, so that proxies keep the connection.
HEARTBEAT_SECONDS = 15.0
#: So often (seconds) an open stream looks whether its key still opens.
WELCOME_SECONDS = 5.0
#: A client that takes no byte for so long is given up.
SEND_SECONDS = 60.0

_START = "0"
_BATCH = 200
#: One blocking read of Redis; a stopping server waits for it.
_BLOCK_SECONDS = 1.0
_ENTRY_ID = re.compile(r"\d{1,19}(-\d{1,19})?", re.ASCII)
_ENDS = frozenset(f"job.{status}" for status in JobStatus if status.is_terminal)


class Streams:
    """The open event streams of this process."""

    def __init__(self, ledger: Ledger, redis_url: str) -> None:
        self._ledger = ledger
        self._redis_url = redis_url
        self._open = 0
        self._closing = False

    def close(self) -> None:
        """Ends every stream within a second; clients reconnect with the last ID they saw."""
        self._closing = True

    async def open(
        self, job_id: str, after: str, welcome: Callable[[], bool]
    ) -> "EventStream | None":
        """A response that streams a job's events after an ID; None when there will be no more.

        Args:
            job_id: the job.
            after: ID of the last event the client has.
            welcome: whether the client may still listen; asked in a thread every `WELCOME_SECONDS`.

        Raises:
            NotFound: there is no such job.
            TooManyStreams: `LIMIT` streams are open.
        """
        if self._open >= LIMIT:
            raise TooManyStreams(
                f"{LIMIT} event streams are already open.",
                hint="Poll GET /jobs/{id}, or try again later.",
            )
        self._open += 1
        try:
            # Read before the events: an ended job gets no more of them.
            job = await run_in_threadpool(self._ledger.job, job_id)
            newer = await run_in_threadpool(self._ledger.events, job_id, after=after, limit=1)
        except BaseException:
            self._closed()
            raise
        if job.is_terminal and not newer:
            self._closed()
            return None
        return EventStream(self._events(job_id, after, welcome), on_close=self._closed)

    def _closed(self) -> None:
        self._open -= 1

    async def _events(
        self, job_id: str, after: str, welcome: Callable[[], bool]
    ) -> AsyncGenerator[bytes]:
        # Any: redis-py types an entry as anything any of its protocols may answer
        client: Any = redis.asyncio.Redis.from_url(
            self._redis_url,
            decode_responses=True,
            encoding_errors=OPTIONS["encoding_errors"],
            single_connection_client=True,
            protocol=2,
        )
        try:
            if missed := await run_in_threadpool(self._snapshot, job_id, after):
                yield encode(missed)
            spoken = asked = time.monotonic()
            while not self._closing:
                entries = await client.xread(
                    {self._ledger.events_key(job_id): after},
                    count=_BATCH,
                    block=int(_BLOCK_SECONDS * 1000),
                )
                for entry_id, fields in entries[0][1] if entries else []:
                    after = entry_id
                    for event in self._ledger.legible_events(job_id, [(entry_id, fields)]):
                        yield encode(event)
                        spoken = time.monotonic()
                        ends = event.type in _ENDS
                        if ends and await run_in_threadpool(self._over, job_id, after):
                            return
                if time.monotonic() - asked >= WELCOME_SECONDS:
                    if not await run_in_threadpool(welcome):
                        return
                    asked = time.monotonic()
                if time.monotonic() - spoken >= HEARTBEAT_SECONDS:
                    yield KEEPALIVE_COMMENT
                    spoken = time.monotonic()
        except (redis.exceptions.RedisError, RedisUnavailable):
            return  # the client reconnects where it stopped and is told what is wrong
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()

    def _snapshot(self, job_id: str, after: str) -> JobEvent | None:
        """The job as it is now, where events after the ID are no longer kept."""
        kept = self._ledger.events(job_id, after=_START, limit=1)
        if not kept or kept[0].type == "job.submitted" or _order(after) >= _order(kept[0].id):
            return None
        job = self._ledger.job(job_id)
        return JobEvent(
            id=after, type="snapshot", at=datetime.now(UTC), data=job.model_dump(mode="json")
        )

    def _over(self, job_id: str, after: str) -> bool:
        """Whether the job has ended and this was its last event (a retry goes on after an end)."""
        ended = self._ledger.job(job_id).is_terminal
        return ended and not self._ledger.events(job_id, after=after, limit=1)


class EventStream(EventSourceResponse):
    """An event stream that gives up a client which takes nothing."""

    def __init__(self, content: AsyncGenerator[bytes], *, on_close: Callable[[], None]) -> None:
        super().__init__(content, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._content = content
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Streams until the job has ended, the client has gone or the server stops."""

        async def patient_send(message: Message) -> None:
            with anyio.fail_after(SEND_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, patient_send)
        except TimeoutError:
            log.info("closed an event stream: its client read nothing for %g s", SEND_SECONDS)
        finally:
            with anyio.CancelScope(shield=True):
                await self._content.aclose()
            self._on_close()


def encode(event: JobEvent) -> bytes:
    """An event in the wire format; `data` is the whole event as JSON."""
    return format_sse_event(data_str=event.model_dump_json(), event=event.type, id=event.id)


def checked_id(after: str, *, param: str) -> str:
    """An event ID from a request.

    Raises:
        InvalidRequest: it could not be one.
    """
    if _ENTRY_ID.fullmatch(after):
        return after
    raise InvalidRequest(
        f"{param}: {after!r:.80} is not the ID of an event.",
        param=param,
        hint="Send the unchanged `id` of an event, or leave it out to start at the first.",
    )


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
