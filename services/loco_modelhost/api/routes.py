"""Ollama's paths: parse, call one function, answer."""

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool

from loco_modelhost.answers import chat as chats
from loco_modelhost.answers import embed as embeddings
from loco_modelhost.answers import generate as completions
from loco_modelhost.api.streams import answered, last, respond, unless_gone
from loco_modelhost.engine.pool import Pool
from loco_modelhost.requests.body import Body
from loco_modelhost.requests.refusals import INVALID_NAME, Refusal, not_found
from loco_modelhost.store.create import create, pull
from loco_modelhost.store.models import Model
from loco_modelhost.store.store import Store

#: The Ollama whose behaviour is followed; the suffix tells this host apart from it.
VERSION = "0.33.0+locollm"

router = APIRouter()


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool


TheStore = Annotated[Store, Depends(_store)]
ThePool = Annotated[Pool, Depends(_pool)]


@router.api_route("/", methods=["GET", "HEAD"])
async def root() -> Response:
    """That somebody is here."""
    return PlainTextResponse("Ollama is running")


@router.api_route("/api/version", methods=["GET", "HEAD"])
async def version() -> Response:
    """The version of the API."""
    return JSONResponse({"version": VERSION})


@router.api_route("/api/tags", methods=["GET", "HEAD"])
def tags(store: TheStore) -> Response:
    """The stored models, the newest first."""
    found = [Model.load(store, m.name.short, m.name) for m in store.manifests()]
    return JSONResponse({"models": [model.listed() for model in found]})


@router.post("/api/show")
async def show(request: Request, store: TheStore) -> Response:
    """All about one model."""
    body = Body("ShowRequest", await request.body())
    requested = body.text("model", "name")
    if not requested:
        raise Refusal(400, "model is required")
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, INVALID_NAME)
    model = Model.load(store, name.short, name)
    verbose = body.flag("verbose")
    return JSONResponse(
        await run_in_threadpool(
            model.shown, body.text("system"), body.mapping("options"), verbose=verbose
        )
    )


@router.get("/api/ps")
async def ps(pool: ThePool) -> Response:
    """The models in memory."""
    return JSONResponse({"models": [loaded.listed() for loaded in pool.running()]})


@router.post("/api/copy")
async def copy(request: Request, store: TheStore) -> Response:
    """One more name for a model."""
    body = Body("CopyRequest", await request.body())
    source, destination = body.text("source"), body.text("destination")
    for label, text in (("source", source), ("destination", destination)):
        if not store.resolve(text).is_valid:
            raise Refusal(400, f"{label} {json.dumps(text)} is invalid")
    if not store.copy(store.resolve(source), store.resolve(destination)):
        raise Refusal(404, f"model {json.dumps(source)} not found")
    return Response()


@router.delete("/api/delete")
async def delete(request: Request, store: TheStore) -> Response:
    """Removes a name, and what only it used."""
    body = Body("DeleteRequest", await request.body())
    requested = body.text("model", "name")
    name = store.resolve(requested)
    if not name.is_valid:
        raise Refusal(400, f"name {json.dumps(requested)} is invalid")
    if not await run_in_threadpool(store.delete, name):
        raise not_found(requested)
    return Response()


@router.head("/api/blobs/{digest}")
async def has_blob(digest: str, store: TheStore) -> Response:
    """Whether a blob is here."""
    if not store.blob_path(digest).exists():
        raise Refusal(404, f"blob {json.dumps(digest)} not found")
    return Response()


@router.post("/api/blobs/{digest}")
async def add_blob(digest: str, request: Request, store: TheStore) -> Response:
    """Takes an upload in. One that is here already stays unread, as in Ollama: ask with HEAD first."""
    if store.blob_path(digest).exists():
        return Response()
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


@router.post("/api/create")
async def create_model(request: Request, store: TheStore) -> Response:
    """Makes a model of a blob or of another model."""
    body = Body("CreateRequest", await request.body())
    return await respond(request, body, iterate_in_threadpool(create(store, body)), last)


@router.post("/api/pull")
async def pull_model(request: Request) -> Response:
    """There is no registry: an error, in the place where Ollama reports one."""
    body = Body("PullRequest", await request.body())
    return await respond(request, body, iterate_in_threadpool(pull(body)), last)


@router.post("/api/chat")
async def chat(request: Request, store: TheStore, pool: ThePool) -> Response:
    """Answers a conversation."""
    body = Body("ChatRequest", await request.body())
    return await respond(request, body, chats.chat(store, pool, body), chats.merged)


@router.post("/api/generate")
async def generate(request: Request, store: TheStore, pool: ThePool) -> Response:
    """Answers a prompt."""
    body = Body("GenerateRequest", await request.body())
    events = completions.generate(store, pool, body)
    return await respond(request, body, events, completions.merged)


@router.post("/api/embed")
async def embed(request: Request, store: TheStore, pool: ThePool) -> Response:
    """Vectors of texts."""
    body = Body("EmbedRequest", await request.body())
    return await unless_gone(request, answered(embeddings.embed(store, pool, body)))
