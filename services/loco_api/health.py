"""Is it up (/healthz), can it take jobs (/readyz), who works (/workers), which version (/version)."""

from http import HTTPStatus
from importlib import metadata
from typing import Literal
from urllib.parse import urlsplit

import httpx
from fastapi import APIRouter, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from loco.contracts.base import Contract
from loco.contracts.errors import ErrorBody, InvalidRequest, RedisUnavailable
from loco.contracts.jobs import WorkerInfo
from loco.contracts.stages import Queue
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import WorkerPage

#: Needs no key: probes of container engines and load balancers carry none.
open_router = APIRouter(tags=["service"])
router = APIRouter(tags=["service"])

_OLLAMA_SECONDS = 2.0
_STAGES = {Queue.CPU: "prepare, register and eval", Queue.GPU: "train and export"}
_START = {
    Queue.CPU: "Start it with `loco up`, or `python -m loco_worker`.",
    Queue.GPU: "Start it with `loco up`, or `python -m loco_trainer` in the training venv.",
}


class Health(Contract):
    """The process answers."""

    status: Literal["ok"] = Field("ok", description="Always `ok`.")


class Check(Contract):
    """One part that the service needs."""

    status: Literal["ok", "down"] = Field(description="`ok` or `down`.")
    message: str = Field(description="What was found.")
    hint: str | None = Field(None, description="What to do about it.")


class Checks(Contract):
    """Every part that the service needs."""

    redis: Check = Field(description="Redis holds all jobs. Without it the server accepts no job.")
    ollama: Check = Field(
        description="Ollama, for register and eval. Without it they wait and retry."
    )
    worker_cpu: Check = Field(description="Runs prepare, register and eval.")
    worker_gpu: Check = Field(description="Runs train and export.")


class Readiness(Contract):
    """Whether the server accepts jobs, and whether they can finish."""

    ready: bool = Field(description="Whether the server accepts jobs.")
    status: Literal["ok", "degraded", "down"] = Field(
        description="`ok`, `degraded` (jobs are accepted, but wait for a part that is down) or `down`."
    )
    checks: Checks = Field(description="The state of each part.")
    error: ErrorBody | None = Field(None, description="Why jobs are not accepted, if they are not.")


class ServiceVersion(Contract):
    """What runs here."""

    name: Literal["locollm"] = Field("locollm", description="Always `locollm`.")
    version: str = Field(description="Version of the service.")


@open_router.get("/healthz", operation_id="getHealth", summary="Is the process up?")
async def get_health() -> Health:
    """Answers as long as the process runs, even if everything else is down."""
    return Health()


@open_router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can it take jobs?",
    responses={
        503: {
            "model": Readiness,
            "description": "The server cannot accept jobs. `checks` says why.",
        }
    },
)
async def get_readiness(here: Here, response: Response) -> Readiness:
    """200 while the server accepts jobs. `checks` shows each part that is down, and the fix."""
    try:
        await run_in_threadpool(here.ledger.require_writes)
        workers = await run_in_threadpool(here.ledger.workers)
        redis, error = Check(status="ok", message="Redis answers and takes writes."), None
    except RedisUnavailable as failure:
        workers, error = [], failure.body
        redis = Check(status="down", message=failure.message, hint=failure.hint)
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    checks = Checks(
        redis=redis,
        ollama=await _ollama(here),
        worker_cpu=_worker(Queue.CPU, workers, known=error is None),
        worker_gpu=_worker(Queue.GPU, workers, known=error is None),
    )
    complete = all(check.status == "ok" for _, check in checks)
    return Readiness(
        ready=error is None,
        status="down" if error else "ok" if complete else "degraded",
        checks=checks,
        error=error,
    )


@open_router.get("/version", operation_id="getVersion", summary="Version")
async def get_version() -> ServiceVersion:
    """The version of the service."""
    return ServiceVersion(version=metadata.version("locollm"))


@router.get(
    "/workers",
    operation_id="listWorkers",
    summary="List workers",
    responses=responses(InvalidRequest),
)
def list_workers(here: Here) -> WorkerPage:
    """The workers that gave a sign of life in the last minute, and what each runs."""
    return WorkerPage(data=tuple(here.ledger.workers()))


async def _ollama(here: Context) -> Check:
    url = urlsplit(here.settings.ollama_host)
    shown = f"{url.scheme}://{url.hostname}:{url.port}"  # without a password that may be in it
    try:
        async with httpx.AsyncClient(
            base_url=here.settings.ollama_host, timeout=_OLLAMA_SECONDS, trust_env=False
        ) as http:
            answer = await http.get("/api/version")
        if answer.is_success:
            version = answer.json().get("version", "unknown")
            return Check(status="ok", message=f"Ollama {version} answers.")
        found = f"HTTP {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        found = str(error) or type(error).__name__
    return Check(
        status="down",
        message=f"No Ollama at {shown}: {found}.",
        hint="Start it with `ollama serve`, or set OLLAMA_HOST to where it runs.",
    )


def _worker(queue: Queue, workers: list[WorkerInfo], *, known: bool) -> Check:
    if not known:
        return Check(status="down", message="Unknown while Redis is down.")
    serving = [worker for worker in workers if worker.queue == queue]
    if serving:
        return Check(status="ok", message=f"{len(serving)} serving queue {queue}.")
    return Check(
        status="down",
        message=f"No worker serves queue {queue}, so {_STAGES[queue]} wait.",
        hint=_START[queue],
    )
