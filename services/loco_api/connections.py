"""Connections that nobody can hold on to: uvicorn's HTTP protocol with limits on number and time.

uvicorn waits for ever for the rest of a request, and for a client that reads no answer (docs/adr/0021).
Every connection here has to send a whole request in time and to take what it asked for in time.
"""

import asyncio
import logging
import resource
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

#: File descriptors that are not connections: event streams' Redis sockets, files, the ledger's pool.
_RESERVED_FILES = 300
#: Between two lines about refused connections.
_SAY_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server."""

    #: Seconds for the head and body of a request, from its first byte or the connection's start.
    request_seconds: float = 30.0
    #: Seconds for a client to take what waits in the socket's buffer (64 KiB and more).
    write_seconds: float = 60.0
    #: Open connections: all, and of one address.
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


class BoundedProtocol(H11Protocol):
    """One connection, closed when it takes too long."""

    limits: ClassVar[Limits]
    count: ClassVar[_Count]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._address: str | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or drops it where there are too many."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
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
        """Reads on; from the first byte of a request the time runs until its last."""
        super().data_received(data)
        if self.transport.is_closing():
            self._expect_taken()
        elif self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._received()
        elif self._reading is None:
            self._expect_request()

    def handle_events(self) -> None:
        """Reads what has come; an answered request may have had the next one behind it."""
        super().handle_events()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._received()
        elif self._reading is None and (
            self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        ):
            self._expect_request()  # it came behind the one before, and only in part

    def pause_writing(self) -> None:
        """The buffer is full: the client has some time to take it."""
        super().pause_writing()
        self._expect_taken()

    def resume_writing(self) -> None:
        """The client took enough of it."""
        super().resume_writing()
        self._taken()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection; what the client has not taken by then has its time, too."""
        super().timeout_keep_alive_handler()
        self._expect_taken()

    def _expect_request(self) -> None:
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
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # its body stopped coming: the route that reads it hears of it
            return
        self.transport.close()
        self._expect_taken()


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
    possible = max(soft - _RESERVED_FILES, soft // 2)
    return replace(
        wanted,
        connections=min(wanted.connections, possible),
        per_address=min(wanted.per_address, possible),
    )
