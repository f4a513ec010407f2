"""Refuses request bodies larger than any request here has reason to be."""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loco.contracts.errors import BodyTooLarge
from loco_api.errors import answer

#: In bytes (1 MiB); a job request is under 10 kB.
BODY_LIMIT = 1 << 20


#: Routes that take a body piece by piece, with limits of their own (`datasets`, `openai_api.files`).
UPLOADS = "/datasets"
FORMS = "/v1/files"


def is_upload(scope: Mapping[str, Any]) -> bool:
    """Whether a request's body is a file, or a part of one."""
    method, path = str(scope["method"]), str(scope["path"])
    begins = method == "POST" and path in (UPLOADS, FORMS)
    return begins or (method == "PATCH" and path.startswith(f"{UPLOADS}/"))


class BodyLimit:
    """Answers 413 to a body over the limit, whether its length is declared or only turns out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or is_upload(scope):
            await self._app(scope, receive, send)
            return
        error = BodyTooLarge(
            f"The body is larger than {BODY_LIMIT} bytes.",
            hint="Upload the data with `loco data push`, or put it into a file on the server, "
            "and name that in the request.",
        )
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > BODY_LIMIT:
            refused = answer(error.body, error.status, path=scope["path"])
            await refused(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_LIMIT:
                # the one kind of error that FastAPI lets through while it reads a body
                raise HTTPException(error.status, error.message)
            return message

        await self._app(scope, limited, send)
