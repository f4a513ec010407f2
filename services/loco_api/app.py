"""The application: routes, errors, limits, and what runs beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint
from loco.queue.celery_app import close_queue, send_hint
from loco.queue.reaper import Reaper
from loco.running.remove import clear_removed
from loco_api import (
    adapters,
    artifacts,
    bases,
    datasets,
    diff,
    errors,
    events,
    health,
    jobs,
    keys,
    logs,
    looks,
    plan,
    recipes,
    removal,
    sweeps,
    tasks,
    versions,
)
from loco_api.auth import READ, Authentication
from loco_api.body_limit import BodyLimit
from loco_api.browser_headers import BrowserHeaders
from loco_api.client import routes as client
from loco_api.context import Context
from loco_api.openai_api import chat, files, models
from loco_api.openai_api import jobs as fine_tuning
from loco_api.openai_api.upstream import Upstream
from loco_api.openapi import DESCRIPTION, TAGS, TITLE, Api
from loco_api.query import KNOWN_QUERY
from loco_api.rates import Rate
from loco_api.trail import Trail


def create_app(context: Context) -> FastAPI:
    """The API over a context.

    Args:
        context: ledger, queue, keys and settings, built by the composition root.
    """
    app = Api(
        title=TITLE,
        description=DESCRIPTION,
        version=metadata.version("locollm"),
        openapi_tags=TAGS,
        lifespan=_lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.context = context
    settings = context.settings
    app.state.submits = Rate(settings.submits_per_minute)
    app.state.trail = Trail(context.keys.audit)
    app.state.ollama = Upstream(settings.ollama_host)
    errors.install(app)
    # the last one added sees a request first
    app.add_middleware(BodyLimit)
    app.add_middleware(Authentication, context=context, trail=app.state.trail)
    if settings.trusted_proxies:
        proxies = [str(network) for network in settings.trusted_proxies]
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=proxies)
    app.add_middleware(BrowserHeaders)
    app.include_router(client.router)
    app.include_router(health.open_router)  # probes may add a parameter against caches
    for module in (
        *(jobs, removal, sweeps, diff, plan, tasks, events, logs, artifacts, datasets),
        *(adapters, recipes, looks, bases, versions, keys, health),
    ):
        app.include_router(module.router, dependencies=[READ, KNOWN_QUERY])
    for module in (files, fine_tuning, models, chat):
        app.include_router(module.router, dependencies=[READ, KNOWN_QUERY])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Reaps while the server runs: expired leases, due retries, forgotten hints."""
    context: Context = app.state.context

    def hint(job_id: str, stage: Stage) -> None:
        send_hint(context.queue, Hint(job_id=job_id, stage=stage))

    reaper = Reaper(
        context.ledger,
        send_hint=hint,
        clear=lambda: clear_removed(context.ledger, context.settings.adapters_dir),
        every=context.settings.timings.reap,
    )
    reaper.start()
    yield
    context.streams.close()
    await app.state.ollama.close()
    await app.state.trail.settle(everything=True)
    await run_in_threadpool(reaper.stop)
    context.ledger.close()
    context.keys.close()
    await run_in_threadpool(close_queue, context.queue)
