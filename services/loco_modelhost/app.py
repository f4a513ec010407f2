"""Routes of the model host: parse, call one function, answer. Ollama's paths, words and codes."""

import asyncio
import ipaddress
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.datastructures import URL
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from loco_modelhost.body import Body
from loco_modelhost.chat import chat, generate, merged
from loco_modelhost.create import create, pull
from loco_modelhost.engine import EngineError
from loco_modelhost.models import Model
from loco_modelhost.pool import Pool
from loco_modelhost.refusals import INVALID_NAME, Refusal, not_found
from loco_modelhost.store import Store

#: The Ollama whose behaviour is followed; the suffix tells this host apart from it.
VERSION = "0.33.0+locollm"

Events = AsyncIterator[dict[str, Any]]


def build(folder: Path, *, host: str, most_loaded: int = 3, most_waiting: int = 512) -> FastAPI:
    """The application.

    Args:
        folder: where models are stored.
        host: the address it is bound to; on loopback foreign Host headers are refused.
        most_loaded: models kept in memory at once.
        most_waiting: requests that may wait before others are turned away with a 503.
    """
    store = Store(folder)
    pool = Pool(most_loaded=most_loaded, most_waiting=most_waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(store.prune)
        yield
        pool.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    if _is_loopback(host):
        app.add_middleware(_HostCheck)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def root() -> Response:
        return PlainTextResponse("Ollama is running")

    @app.api_route("/api/version", methods=["GET", "HEAD"])
    async def version() -> Response:
        return JSONResponse({"version": VERSION})

    @app.api_route("/api/tags", methods=["GET", "HEAD"])
    def tags() -> Response:
        found = [Model.load(store, m.name.short, m.name) for m in store.manifests()]
        return JSONResponse({"models": [model.listed() for model in found]})

    @app.post("/api/show")
    async def show(request: Request) -> Response:
        body = Body("ShowRequest", await request.body())
        requested = body.text("model", "name")
        if not requested:
            raise Refusal(400, "model is required")
        name = store.resolve(requested)
        if not name.is_valid:
            raise Refusal(400, INVALID_NAME)
        model = Model.load(store, name.short, name)
        return JSONResponse(model.shown(body.text("system"), body.mapping("options")))

    @app.get("/api/ps")
    async def ps() -> Response:
        return JSONResponse(
            {
                "models": [
                    {
                        "name": x.model.manifest.name.short,
                        "model": x.model.manifest.name.short,
                        "size": x.model.weights.size,
                        "digest": x.model.manifest.digest,
                        "details": x.model.details,
                        "expires_at": x.expires_at.isoformat(),
                        "size_vram": 0,
                        "context_length": x.context_length,
                    }
                    for x in pool.running()
                ]
            }
        )

    @app.post("/api/copy")
    async def copy(request: Request) -> Response:
        body = Body("CopyRequest", await request.body())
        source, destination = body.text("source"), body.text("destination")
        for label, text in (("source", source), ("destination", destination)):
            if not store.resolve(text).is_valid:
                raise Refusal(400, f"{label} {json.dumps(text)} is invalid")
        if not store.copy(store.resolve(source), store.resolve(destination)):
            raise Refusal(404, f"model {json.dumps(source)} not found")
        return Response()

    @app.delete("/api/delete")
    async def delete(request: Request) -> Response:
        body = Body("DeleteRequest", await request.body())
        requested = body.text("model", "name")
        name = store.resolve(requested)
        if not name.is_valid:
            raise Refusal(400, f"name {json.dumps(requested)} is invalid")
        manifest = store.manifest(name)
        if not manifest:
            raise not_found(requested)
        await run_in_threadpool(store.delete, manifest)
        return Response()

    @app.head("/api/blobs/{digest}")
    async def has_blob(digest: str) -> Response:
        if not store.blob_path(digest).exists():
            raise Refusal(404, f"blob {json.dumps(digest)} not found")
        return Response()

    @app.post("/api/blobs/{digest}")
    async def add_blob(digest: str, request: Request) -> Response:
        if store.blob_path(digest).exists():
            return Response()  # the body stays unread, as in Ollama: ask with HEAD first
        with store.new_blob() as blob:
            async for chunk in request.stream():
                blob.write(chunk)
            if blob.digest != digest.replace("-", ":"):
                raise Refusal(
                    400,
                    f"digest mismatch, expected {json.dumps(digest)}, got {json.dumps(blob.digest)}",
                )
            await run_in_threadpool(blob.keep)
        return Response(status_code=201)

    @app.post("/api/create")
    async def create_model(request: Request) -> Response:
        body = Body("CreateRequest", await request.body())
        return await _answer(request, body, iterate_in_threadpool(create(store, body)), _last)

    @app.post("/api/pull")
    async def pull_model(request: Request) -> Response:
        body = Body("PullRequest", await request.body())
        return await _answer(request, body, iterate_in_threadpool(pull(body)), _last)

    @app.post("/api/chat")
    async def chat_with(request: Request) -> Response:
        body = Body("ChatRequest", await request.body())
        return await _answer(request, body, chat(store, pool, body), merged)

    @app.post("/api/generate")
    async def generate_with(request: Request) -> Response:
        body = Body("GenerateRequest", await request.body())
        return await _answer(request, body, generate(store, pool, body), merged)

    return app


async def _answer(
    request: Request,
    body: Body,
    events: Events,
    merge: Callable[[list[dict[str, Any]]], dict[str, Any]],
) -> Response:
    """Events as lines of JSON while they come, or as one object with `stream: false`."""
    if not body.flag("stream", default=True):
        return await _unless_gone(request, _whole(events, merge))
    return await _unless_gone(request, _streamed(events))


async def _whole(
    events: Events, merge: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> Response:
    return JSONResponse(merge([event async for event in events]))


async def _streamed(events: Events) -> Response:
    """Waits for the first event: an error until then still has a status of its own."""
    first = await anext(events)
    if first.get("done") or "_debug_info" in first:  # load, unload, debug: one object, no stream
        async for _ in events:
            pass
        return JSONResponse(first)

    async def lines() -> AsyncIterator[bytes]:
        yield _line(first)
        try:
            async for event in events:
                yield _line(event)
        except Refusal as refusal:
            yield _line({"error": refusal.message})
        except (EngineError, OSError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            yield _line({"error": str(error)})

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
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


def _last(events: list[dict[str, Any]]) -> dict[str, Any]:
    return events[-1]


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse({"error": refusal.message}, status_code=refusal.status)

    @app.exception_handler(EngineError)
    async def failed(_: Request, error: EngineError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=500)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        words = {404: "404 page not found", 405: "405 method not allowed"}
        return PlainTextResponse(
            words.get(error.status_code, str(error.detail)), status_code=error.status_code
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _HostCheck:
    """A web page must not reach a loopback server through a name of its own (DNS rebinding)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._here = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            await Response(status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        host = (URL(scope=scope).hostname or "").lower()
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            known = ("", "localhost", self._here)
            return host in known or host.endswith((".localhost", ".local", ".internal"))
        return address.is_loopback or address.is_private or address.is_unspecified
