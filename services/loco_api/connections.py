"""Connections that nobody can hold on to: uvicorn's HTTP protocol with limits on number and time.

uvicorn waits for ever for the rest of a request, and for a client that reads no answer (docs/adr/0021).
Every connection here has to send a whole request in time and to take what it asked for in time.
"""

import asyncio
import errno
import logging
import resource
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from loco.contracts.errors import InvalidRequest
from loco_api.body_limit import is_upload
from loco_api.errors import answer
from loco_api.rates import network_of

log = logging.getLogger(__name__)

#: File descriptors of no connection: event streams' Redis sockets, the ledger's pool, recipes.
_RESERVED_FILES = 300
#: Between two lines about refused connections.
_SAY_SECONDS = 10.0
#: What accept says where there is no descriptor or memory left for a connection.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server."""

    #: Seconds for the head and body of a request, from its first byte or the connection's start.
    request_seconds: float = 30.0
    #: Bytes of an upload that have to come in that time for it to have as long again; more than is
    #: taken from a client of whom nothing is read.
    upload_bytes: int = 1 << 18
    #: Seconds for a client to take what waits in the socket's buffer (64 KiB and more).
    write_seconds: float = 60.0
    #: Open connections: all, and of one address, or of one IPv6 /64.
    connections: int = 1000
    per_address: int = 250


class _Count:
    """The open connections of one server."""

    def __init__(self) -> None:
        self.by_address: Counter[str] = Counter()
        self._refused = 0
        self._said_at = float("-inf")

    def refused(self, address: str) -> None:
        """Logs refusals, many in a line."""
        self._refused += 1
        if time.monotonic() - self._said_at >= _SAY_SECONDS:
            log.warning("%d connections refused, the last of %s", self._refused, address)
            self._refused, self._said_at = 0, time.monotonic()


class _Exhaustion:
    """An event loop's handler of errors that says once in a while that no connection can be taken.

    asyncio tries as often as the backlog is long, each second, and has a traceback for every try.
    """

    def __init__(self) -> None:
        self._said_at = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_at >= _SAY_SECONDS:
            log.error("no connection can be taken: %s; trying again each second", error.strerror)
            self._said_at = time.monotonic()


class BoundedProtocol(H11Protocol):
    """One connection, closed when it takes too long."""

    limits: ClassVar[Limits]
    count: ClassVar[_Count]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._address: str | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._came = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or drops it where there are too many."""
        super().connection_made(transport)
        address = network_of(self.client[0]) if self.client else ""
        total = self.count.by_address.total()
        if (
            total >= self.limits.connections
            or self.count.by_address[address] >= self.limits.per_address
        ):
            self.count.refused(address)
            transport.abort()
            return
        self._address = address
        self.count.by_address[address] += 1
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        if self._address is not None:
            self.count.by_address[self._address] -= 1
            self.count.by_address += Counter()  # drops zeros
            self._address = None
        self._received()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes."""
        self._came += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        """Reads what has come; from the first byte of a request the time runs until its last.

        Also called when a request was answered, for what came behind it. While the keep-alive timer runs,
        no next one has begun.
        """
        super().handle_events()
        if self.transport.is_closing():
            self._expect_taken()
        elif self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._received()
        elif self._reading is None and self.timeout_keep_alive_task is None:
            self._expect_request()

    def on_response_complete(self) -> None:
        """Goes on with the next request; where there is none, the end of the answer has its time."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_taken()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in the API's form; in the middle of an answer there is none."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        refusal = InvalidRequest(msg, hint="Send HTTP/1.1 with a head of less than 64 KiB.")
        refused = answer(refusal.body, HTTPStatus.BAD_REQUEST, {"Connection": "close"})
        for event in (
            h11.Response(status_code=400, headers=refused.raw_headers, reason=b"Bad Request"),
            h11.Data(data=bytes(refused.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """The buffer is full: the client has some time to take it."""
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        """The client took enough of it."""
        super().resume_writing()
        if not self.transport.is_closing():  # its end has to be taken, too
            self._taken()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection; what the client has not taken by then has its time, too."""
        super().timeout_keep_alive_handler()
        self._expect_taken()

    def _expect_request(self) -> None:
        self._came = 0
        self._reading = self.loop.call_later(self.limits.request_seconds, self._too_slow)

    def _received(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _taken(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _expect_taken(self) -> None:
        if self._writing is None:
            self._writing = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def _too_slow(self) -> None:
        """The request did not come in time."""
        self._reading = None
        if self.transport.is_closing():
            return
        if self._uploads() and self._came >= self.limits.upload_bytes:
            self._expect_request()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # its body stopped coming: the route that reads it hears of it
            return
        self.transport.close()
        self._expect_taken()

    def _uploads(self) -> bool:
        """Whether a file is on its way, which may take longer than a request, as long as it comes."""
        begun = self.cycle is not None and not self.cycle.response_complete
        return begun and self.conn.their_state is h11.SEND_BODY and is_upload(self.scope)


def quiet_when_exhausted(loop: asyncio.AbstractEventLoop) -> None:
    """Keeps a loop that is out of file descriptors from filling the log."""
    loop.set_exception_handler(_Exhaustion())


def protocol(limits: Limits) -> type[BoundedProtocol]:
    """The protocol of one server, with its limits and its count of connections."""
    return type("Connection", (BoundedProtocol,), {"limits": limits, "count": _Count()})


def limits_here(wanted: Limits | None = None) -> Limits:
    """As many connections as this process may have files open, after it took all it may take."""
    wanted = wanted or Limits()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY or soft != resource.RLIM_INFINITY:
        with suppress(ValueError, OSError):  # macOS takes no infinity here
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    # each may download a file: two descriptors
    possible = max((soft - _RESERVED_FILES) // 2, soft // 4)
    return replace(
        wanted,
        connections=min(wanted.connections, possible),
        per_address=min(wanted.per_address, possible),
    )
