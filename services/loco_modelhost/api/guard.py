"""Who may speak to the model host, and how much: Host, Origin, content type, size of a body.

A browser sends Origin with what a page may abuse. Ollama lets pages of this machine in (OLLAMA_ORIGINS)
and refuses others; so does this. Programs send no Origin, and are let in whatever they call a body.
"""

import asyncio
import ipaddress
import shutil
import socket
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import URL, Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loco.contracts.addresses import is_loopback

#: Bytes of a JSON body: a context of a million tokens has less.
LARGEST_BODY = 16 << 20
#: Bytes of an upload; a model of 70 billion parameters in 16 bits has less.
LARGEST_BLOB = 200 << 30
#: Seconds for a JSON body, and for the next piece of an upload.
BODY_SECONDS = 120.0
#: Bytes that stay free on the disk of uploads.
_LEFT_FREE = 1 << 30
_BLOBS = "/api/blobs/"
#: Schemes of desktop apps that Ollama lets in.
_APPS = ("app", "file", "tauri", "vscode-webview", "vscode-file")


class Guard:
    """Refuses a request before a route sees it."""

    def __init__(
        self, app: ASGIApp, *, host: str, folder: Path, patience: float = BODY_SECONDS
    ) -> None:
        """Takes the application.

        Args:
            app: what is guarded.
            host: the address it is bound to; on loopback foreign Host headers are refused.
            folder: where uploads go.
            patience: seconds for a JSON body, and for the next piece of an upload.
        """
        self._app = app
        self._local = is_loopback(host)
        self._here = socket.gethostname().lower()
        self._folder = folder
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refused := self._refused(scope, headers):
            await refused(scope, receive, send)
            return
        upload = scope["path"].startswith(_BLOBS)
        most = self._room() if upload else LARGEST_BODY
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            await _too_large(most)(scope, receive, send)
            return
        read = 0
        answered = complete = False

        now = asyncio.get_running_loop().time
        deadline = now() + self._patience

        async def limited() -> Message:
            nonlocal read, complete, deadline
            if complete:  # the next is that the client has gone, whenever it does
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise _RefusedError(_too_slow(self._patience)) from None
            if upload:  # it may take hours, as long as something comes
                deadline = now() + self._patience
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > most:
                raise _RefusedError(_too_large(most))
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, limited, watched)
        except _RefusedError as error:
            if not answered:
                await error.answer(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        if self._local and not self._known((URL(scope=scope).hostname or "").lower()):
            return Response(status_code=403)
        origin = headers.get("origin")
        if origin is None:
            return None
        if not self._from_here(origin):
            return JSONResponse({"error": f"origin {origin!r:.100} is not allowed"}, 403)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        simple = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
        if scope["method"] == "POST" and kind in simple:
            # what a page may send anywhere without asking first
            return JSONResponse({"error": "send Content-Type: application/json"}, 415)
        return None

    def _known(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            known = ("", "localhost", self._here)
            return host in known or host.endswith((".localhost", ".local", ".internal"))
        return address.is_loopback or address.is_private or address.is_unspecified

    def _from_here(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
            host = (parts.hostname or "").lower()
        except ValueError:
            return False
        if parts.scheme in _APPS:
            return True
        return parts.scheme in ("http", "https") and (is_loopback(host) or host == "0.0.0.0")  # noqa: S104 (read, not bound)

    def _room(self) -> int:
        free = shutil.disk_usage(self._folder).free
        return max(0, min(LARGEST_BLOB, free - _LEFT_FREE))


class _RefusedError(Exception):
    """The body turned out to be what it may not be."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


def _too_large(most: int) -> Response:
    return _closing(413, f"request body too large: at most {most} bytes")


def _too_slow(seconds: float) -> Response:
    return _closing(408, f"the request body did not come within {seconds:.0f} seconds")


def _closing(status: int, message: str) -> Response:
    # the rest of the body is not waited for
    return JSONResponse({"error": message}, status, {"Connection": "close"})
