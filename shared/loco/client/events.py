"""A job's events as the client follows them: a live stream, and pages where there is none.

The live stream is server-sent events. It breaks when the server restarts, when a proxy gets
impatient or when the network does; every event carries its ID, so following goes on right behind
the last one seen. Between two streams the pages are read, which also serves as the fallback where
something in between swallows streams.
"""

import time
from collections.abc import Iterator
from http import HTTPStatus

import httpx
from httpx_sse import EventSource

from loco.client.http import Transport, path_of, understood
from loco.contracts.errors import LocoError, ServerUnreachable
from loco.contracts.jobs import Job, JobEvent, JobStatus

#: Events before the first one.
START = "0"

#: Seconds of silence (the server sends heartbeats) before a stream counts as broken.
SILENCE = 45.0

#: Seconds between two pages where no stream can be had.
POLL = 1.0

#: First pause, in seconds, when the server does not answer.
FIRST_PAUSE = 0.2

#: Pauses grow up to so many seconds while the server does not answer.
LONGEST_PAUSE = 5.0

#: Events a page.
PAGE = 1000

_ENDS = frozenset(f"job.{status.value}" for status in JobStatus if status.is_terminal)


class Deadline(Exception):
    """The caller's time is over."""


class Follower:
    """Follows one job's events until the job has ended.

    Args:
        transport: where to ask.
        job_id: the job.
        after: ID of the last event already seen.
        patience: seconds a server may stay silent before following gives up.
        deadline: `time.monotonic()` at which `Deadline` is raised, if any.
    """

    def __init__(
        self,
        transport: Transport,
        job_id: str,
        *,
        after: str = START,
        patience: float,
        deadline: float | None = None,
    ) -> None:
        self._transport = transport
        self._job_path = path_of("jobs", job_id)
        self._cursor = after
        self._patience = patience
        self._deadline = deadline
        self._streams = True
        self.job: Job | None = None

    def events(self) -> Iterator[JobEvent]:
        """The events, oldest first; afterwards `self.job` is the ended job.

        Raises:
            Deadline: the deadline passed.
            LocoError: the job is unknown, the key is wrong, or patience ran out.
        """
        silent_since: float | None = None
        pause = FIRST_PAUSE
        while True:
            self._check_deadline()
            live = False
            try:
                for event in self._stream_while_it_lasts():
                    live = True
                    yield event
                # The job is read before the page: an ended job gets no more events, so an empty
                # page after it means that all were seen.
                job = read_job(self._transport, self._job_path)
                seen = self._cursor
                yield from self._pages()
                if job.is_terminal and self._cursor == seen:
                    self.job = job
                    return
                silent_since, pause = None, FIRST_PAUSE
                if not live:
                    self._sleep(POLL)
            except LocoError as error:
                if not error.retryable:
                    raise
                now = time.monotonic()
                silent_since = silent_since or now
                if now - silent_since > self._patience:
                    raise
                self._sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _stream_while_it_lasts(self) -> Iterator[JobEvent]:
        """The live events until the stream ends or breaks; pages tell what became of the job."""
        if not self._streams:
            return
        try:
            yield from self._stream()
        except LocoError as error:
            if not error.retryable:
                raise

    def _stream(self) -> Iterator[JobEvent]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._cursor != START:
            headers["Last-Event-ID"] = self._cursor
        path = f"{self._job_path}/events"
        silence = SILENCE
        if self._deadline is not None:
            silence = min(silence, max(self._deadline - time.monotonic(), 0.1))
        with self._transport.stream(path, headers=headers, read_timeout=silence) as response:
            if response.status_code == HTTPStatus.NO_CONTENT:
                return  # the job has ended and every event was seen
            if "text/event-stream" not in response.headers.get("Content-Type", ""):
                self._streams = False
                return
            for event in read_sse(response):
                self._check_deadline()
                self._cursor = event.id
                yield event
                if event.type in _ENDS:
                    return

    def _pages(self) -> Iterator[JobEvent]:
        while True:
            page = self._transport.get(f"{self._job_path}/events", after=self._cursor, limit=PAGE)
            for entry in page["data"]:
                event = understood(JobEvent, entry)
                self._cursor = event.id
                yield event
            if not page.get("has_more"):
                return

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise Deadline

    def _sleep(self, seconds: float) -> None:
        if self._deadline is not None:
            seconds = min(seconds, max(self._deadline - time.monotonic(), 0))
        time.sleep(seconds)


def read_job(transport: Transport, path: str) -> Job:
    """A job as this version knows it."""
    return understood(Job, transport.get(path))


def read_sse(response: httpx.Response) -> Iterator[JobEvent]:
    """The events of a server-sent stream; comments (heartbeats) are skipped.

    Raises:
        ServerUnreachable: what came is no event; pages may have it.
    """
    for event in EventSource(response).iter_sse():
        if event.data:  # the blank line behind a comment is an event without data
            try:
                yield JobEvent.model_validate(event.json(), extra="ignore")
            except (ValueError, RecursionError) as error:
                raise ServerUnreachable(f"The stream broke off: {error!r:.200}") from error
