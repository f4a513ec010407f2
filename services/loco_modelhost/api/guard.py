"""Who may speak to the model host, and how much: Host, Origin, content type, size of a body.

A browser sends Origin with what a page may abuse. Ollama lets pages of this machine in (OLLAMA_ORIGINS)
and refuses others; so does this. Programs send no Origin, and are let in whatever they call a body.
"""

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
#: Bytes that stay free on the disk of uploads.
_LEFT_FREE = 1 << 30
_BLOBS = "/api/blobs/"
#: Schemes of desktop apps that Ollama lets in.
_APPS = ("app", "file", "tauri", "vscode-webview", "vscode-file")


class Guard:
    """Refuses a request before a route sees it."""

    def __init__(self, app: ASGIApp, *, host: str, folder: Path) -> None:
        """Takes the application.

        Args:
            app: what is guarded.
            host: the address it is bound to; on loopback foreign Host headers are refused.
            folder: where uploads go.
        """
        self._app = app
        self._local = is_loopback(host)
        self._here = socket.gethostname().lower()
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refused := self._refused(scope, headers):
            await refused(scope, receive, send)
            return
        most = self._most(scope["path"])
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            await _too_large(most)(scope, receive, send)
            return
        read = 0
        answered = False

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, limited, watched)
        except _TooLargeError:
            if not answered:
                await _too_large(most)(scope, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        if self._local and not self._known((URL(scope=scope).hostname or "").lower()):
            return Response(status_code=403)
        origin = headers.get("origin")
        if origin is None:
            return None
        if not self._from_here(origin):
            return JSONResponse({"error": f"origin {origin!r:.100} is not allowed"}, 403)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        simple = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
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

    def _most(self, path: str) -> int:
        if not path.startswith(_BLOBS):
            return LARGEST_BODY
        free = shutil.disk_usage(self._folder).free
        return max(0, min(LARGEST_BLOB, free - _LEFT_FREE))


class _TooLargeError(Exception):
    """The body turned out to be larger than it may be."""


def _too_large(most: int) -> Response:
    return JSONResponse({"error": f"request body too large: at most {most} bytes"}, 413)
