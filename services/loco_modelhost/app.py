"""The application: routes, and errors in Ollama's form."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from loco_modelhost.api import openai
from loco_modelhost.api.guard import Guard
from loco_modelhost.api.routes import router
from loco_modelhost.engine.pool import Pool
from loco_modelhost.engine.session import EngineError
from loco_modelhost.requests.refusals import Refusal
from loco_modelhost.store.store import Store


def build(
    folder: Path, *, host: str, most_loaded: int = 3, most_waiting: int = 512, parallel: int = 1
) -> FastAPI:
    """The application.

    Args:
        folder: where models are stored.
        host: the address it is bound to; on loopback foreign Host headers are refused.
        most_loaded: models kept in memory at once.
        most_waiting: requests that may wait before others are turned away with a 503.
        parallel: requests one model answers at once; they share the CPUs.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(app.state.store.prune)
        yield
        await app.state.pool.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.store = Store(folder)
    app.state.pool = Pool(most_loaded=most_loaded, most_waiting=most_waiting, parallel=parallel)
    app.include_router(router)
    app.include_router(openai.router)
    _add_errors(app)
    app.add_middleware(Guard, host=host, folder=folder)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _error(request, refusal.status, refusal.message)

    @app.exception_handler(EngineError)
    @app.exception_handler(OSError)
    async def failed(request: Request, error: Exception) -> Response:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return _error(request, 500, str(error))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        words = {404: "404 page not found", 405: "405 method not allowed"}
        text = words.get(error.status_code, str(error.detail))
        return PlainTextResponse(text, status_code=error.status_code)


def _error(request: Request, status: int, message: str) -> Response:
    of_openai = request.url.path.startswith("/v1/")
    content = openai.error(status, message) if of_openai else {"error": message}
    return JSONResponse(content, status_code=status)
