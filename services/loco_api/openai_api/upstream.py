"""Requests passed on to Ollama's own /v1: body in, answer out as it comes, errors in OpenAI's form."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loco.contracts.addresses import is_loopback
from loco.contracts.errors import Busy, OllamaUnavailable
from loco_api.errors import openai_error

log = logging.getLogger(__name__)

#: Answers that are on their way at once; Ollama itself queues 512.
AT_ONCE = 100
#: And with one API key.
OF_A_KEY = 20
#: Seconds without a byte: loading a large model happens inside a request.
_PATIENCE = 600.0
_CONNECT_SECONDS = 10.0
_EVENT_STREAM = "text/event-stream"
#: Nobody is left to read it.
_GONE = 499


class Upstream:
    """The Ollama of this server."""

    def __init__(self, url: str) -> None:
        """Takes its base URL; nothing is asked yet."""
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None
        self._open: Counter[str | None] = Counter()

    async def close(self) -> None:
        """Ends the answers that are on their way."""
        if self._client is not None:
            await self._client.aclose()

    async def post(self, request: Request, path: str, body: bytes, *, key: str | None) -> Response:
        """What Ollama answers to a body, streamed where it streams; a client that leaves ends it.

        Args:
            request: whose body was read.
            path: below Ollama's address.
            body: JSON.
            key: ID of the API key it came with, if one did.

        Raises:
            Busy: too many answers are on their way, or of this key's.
            OllamaUnavailable: nothing answers there.
        """
        if key is not None and self._open[key] >= OF_A_KEY:
            raise Busy(
                f"{OF_A_KEY} answers with this key are already running.",
                hint="Try again later.",
            )
        if self._open.total() >= AT_ONCE:
            raise Busy(f"{AT_ONCE} answers are already running.", hint="Try again later.")
        self._open[key] += 1
        try:
            answer = await self._unless_gone(request, self._send(path, body))
        except BaseException as error:
            self._free(key)
            if isinstance(error, httpx.TransportError):
                raise self._unavailable(error) from error
            raise
        if answer is None:
            self._free(key)
            return Response(status_code=_GONE)
        return _Passed(self, answer, key)

    async def _send(self, path: str, body: bytes) -> httpx.Response:
        client = self._http()
        headers = {"Content-Type": "application/json"}
        return await client.send(
            client.build_request("POST", path, content=body, headers=headers), stream=True
        )

    async def _unless_gone(
        self, request: Request, work: Coroutine[Any, Any, httpx.Response]
    ) -> httpx.Response | None:
        """The head of the answer; None: the client hung up before it came."""
        task = asyncio.ensure_future(work)

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        watcher = asyncio.ensure_future(gone())
        try:
            await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            watcher.cancel()
            task.cancel()

    async def pieces(self, answer: httpx.Response, *, streams: bool) -> AsyncIterator[bytes]:
        """The body of an answer as it comes; in an event stream, what breaks it off is an event."""
        try:
            async for piece in answer.aiter_bytes():
                yield piece
        except httpx.TransportError as error:
            log.warning("Ollama at %s broke off: %s", self._url, error)
            if not streams:
                raise
            told = self._unavailable(error)
            said = json.dumps({"error": openai_error(told.body, told.status)})
            yield f"data: {said}\n\n".encode()

    async def done(self, answer: httpx.Response, key: str | None) -> None:
        """Gives the place of an answer back, read to its end or not."""
        self._free(key)
        with anyio.CancelScope(shield=True):
            await answer.aclose()

    def _free(self, key: str | None) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                base_url=self._url,
                timeout=httpx.Timeout(_PATIENCE, connect=_CONNECT_SECONDS),
                # a proxy must not be asked for this machine's own addresses
                trust_env=not is_loopback(urlsplit(self._url).hostname or ""),
                limits=httpx.Limits(max_connections=AT_ONCE, keepalive_expiry=2.0),
            )
        return self._client

    def _unavailable(self, error: Exception) -> OllamaUnavailable:
        return OllamaUnavailable(
            f"No Ollama answers at {self._url}: {error or type(error).__name__}",
            hint="Run `loco doctor` on the server for details. `loco up` starts a stand-in if no "
            "Ollama runs.",
        )


class _Passed(StreamingResponse):
    """An answer of Ollama's, whose place is free again whatever becomes of it."""

    def __init__(self, upstream: Upstream, answer: httpx.Response, key: str | None) -> None:
        kind = answer.headers.get("content-type", "application/json")
        pieces = upstream.pieces(answer, streams=_EVENT_STREAM in kind)
        super().__init__(pieces, answer.status_code, media_type=kind)
        self._upstream, self._answer, self._key = upstream, answer, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the bytes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._upstream.done(self._answer, self._key)
