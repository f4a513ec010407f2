"""Errors as the API sends them: `{"error": {"code", "message", "param", "hint"}}`, on /v1 as OpenAI's."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from loco.contracts.base import Contract
from loco.contracts.errors import (
    BodyTooLarge,
    ErrorBody,
    Forbidden,
    InvalidRequest,
    LocoError,
    RedisUnavailable,
    TooManyRequests,
    Unauthorized,
    spelling,
)
from loco.recipes.fields import settable

log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 2
_CODES = {404: "not_found", 405: "method_not_allowed", 413: BodyTooLarge.code}


#: Where OpenAI's clients ask, and read errors of OpenAI's form.
OPENAI = "/v1/"
_OPENAI_CODES = {
    Unauthorized.code: "invalid_api_key",
    TooManyRequests.code: "rate_limit_exceeded",
}


class ErrorAnswer(Contract):
    """The body of every answer with a status of 400 or more; on /v1 it is `OpenAIErrorAnswer`."""

    error: ErrorBody = Field(description="What is wrong, and what to do about it.")


class OpenAIError(Contract):
    """An error as OpenAI's clients read it."""

    message: str = Field(description="What is wrong, and what to do about it.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(None, description="The field or header that caused it, if any.")
    code: str | None = Field(None, description="Stable code for programs.")


class OpenAIErrorAnswer(Contract):
    """The body of every answer on /v1 with a status of 400 or more."""

    error: OpenAIError = Field(description="What is wrong.")


Responses = dict[int | str, dict[str, Any]]

_OF_EVERY_ROUTE: tuple[type[LocoError], ...] = (
    Unauthorized,
    Forbidden,
    TooManyRequests,
    LocoError,
    RedisUnavailable,
)


def responses(*errors: type[LocoError], everywhere: bool = True, openai: bool = False) -> Responses:
    """The OpenAPI entries of the errors a route answers with.

    Args:
        errors: classes of the route's own errors.
        everywhere: adds those of every route that asks for a key and reads the ledger.
        openai: the route lies below /v1.
    """
    grouped: dict[int, list[type[LocoError]]] = {}
    for error in (*errors, *(_OF_EVERY_ROUTE if everywhere else ())):
        status = _openai_status(error.status) if openai else error.status
        grouped.setdefault(status, []).append(error)
    path = OPENAI if openai else ""
    return {
        status: {
            "model": OpenAIErrorAnswer if openai else ErrorAnswer,
            "description": " ".join((c.__doc__ or c.code).splitlines()[0] for c in classes),
            "content": {
                "application/json": {
                    "examples": {
                        c.code: {"value": _content(_example(c), c.status, path)} for c in classes
                    }
                }
            },
        }
        for status, classes in grouped.items()
    }


def _example(error: type[LocoError]) -> ErrorBody:
    return ErrorBody(code=error.code, message=(error.__doc__ or error.code).splitlines()[0])


def install(app: FastAPI) -> None:
    """Has the app answer every error in our form."""
    app.add_exception_handler(LocoError, _on_loco_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)


def answer(
    error: ErrorBody, status: int, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> Response:
    """An error answer. ASCII JSON, as a message may quote text that UTF-8 cannot carry.

    Args:
        error: what is wrong.
        status: of the answer; below /v1 a 422 is a 400, as OpenAI has it.
        headers: of the answer.
        path: that was asked for.
    """
    body = json.dumps(_content(error, status, path))
    if path.startswith(OPENAI):
        status = _openai_status(status)
    return Response(body, status, media_type="application/json", headers=headers)


def _content(error: ErrorBody, status: int, path: str) -> dict[str, Any]:
    return {"error": openai_error(error, status) if path.startswith(OPENAI) else error.model_dump()}


def openai_error(error: ErrorBody, status: int) -> dict[str, Any]:
    """An error in OpenAI's form, which has no place for a hint: it follows the message."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    return OpenAIError(
        message=f"{error.message} {error.hint}" if error.hint else error.message,
        type=kind,
        param=error.param,
        code=_OPENAI_CODES.get(error.code, error.code),
    ).model_dump()


def _openai_status(status: int) -> int:
    return 400 if status == InvalidRequest.status else status


async def _on_loco_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LocoError)
    return answer_to(error, request.url.path)


def answer_to(error: LocoError, path: str = "") -> Response:
    """The answer an error of ours means, in the form that the path asks for."""
    headers: dict[str, str] = dict(getattr(error, "headers", {}))
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
        log.warning("answered 503: %s", error.message)
    return answer(error.body, error.status, headers, path=path)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    path = request.url.path
    invalid = invalid_request(error, known=settable() if path in ("/jobs", "/plan") else ())
    return answer(invalid.body, invalid.status, path=path)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    message, hint = str(error.detail), None
    headers = dict(error.headers or {})
    if status == HTTPStatus.NOT_FOUND:
        message, hint = f"No route {path!r:.200}.", "GET /openapi.json lists the routes."
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods(request))
        message = f"{path!r:.200} does not allow {request.method}."
        hint = f"Use {headers['Allow']}."
    elif status == HTTPStatus.BAD_REQUEST:
        status, message = InvalidRequest.status, "The body cannot be read as JSON."
        hint = "Send one JSON object as UTF-8, without very deep nesting or huge numbers."
    body = ErrorBody(code=_CODES.get(status, InvalidRequest.code), message=message, hint=hint)
    return answer(body, status, headers, path=path)


def _methods(request: Request) -> list[str]:
    """The methods this path takes; the framework names those of the first route only."""
    routes = request.app.routes
    return [
        method
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
        if any(r.matches({**request.scope, "method": method})[0] is Match.FULL for r in routes)
    ]


async def _on_fault(request: Request, _: Exception) -> Response:
    """The server's own fault; its traceback is logged by the server after this answer."""
    return answer(
        ErrorBody(
            code=LocoError.code,
            message=f"{request.method} {request.url.path!r:.200} failed inside the server.",
            hint="The server's log has the traceback. Please report it.",
        ),
        LocoError.status,
        path=request.url.path,
    )


def invalid_request(error: RequestValidationError, known: tuple[str, ...] = ()) -> InvalidRequest:
    """The first fault of a request: which field, what is wrong with it, what to do.

    Args:
        error: what the framework found.
        known: fields that the body may have.
    """
    first = error.errors()[0]
    place, *rest = first["loc"]
    kind, context = first["type"], first.get("ctx", {})
    if kind == "json_invalid":
        return InvalidRequest(
            f"The body is not valid JSON: {context.get('error')} at character {rest[0]}.",
            hint="Send one JSON object.",
        )
    field = ".".join(str(part) for part in rest)
    if place == "body" and not rest:
        return InvalidRequest(
            "The body must be one JSON object.",
            hint="Send Content-Type: application/json and an object like"
            ' {"adapter": "math", "profile": "tiny"}.',
        )
    name = field or str(place)
    if kind == "extra_forbidden":
        return InvalidRequest(f"{name}: unknown field.", param=name, hint=spelling(name, known))
    if kind == "missing":
        return InvalidRequest(f"{name}: is missing.", param=name, hint=f"Add it to the {place}.")
    return InvalidRequest(
        f"{name}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r:.80}).",
        param=name,
        hint="GET /openapi.json lists what is allowed.",
    )
