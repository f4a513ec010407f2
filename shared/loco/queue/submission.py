"""From a request to an accepted job: resolve it, check what it builds on, record it, hint at it."""

import hashlib
import json

from celery import Celery

from loco.contracts.errors import DataError, InvalidRequest, NotFound, StageGap
from loco.contracts.jobs import Job
from loco.contracts.requests import JobRequest
from loco.contracts.sources import JsonlSource
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint, Ledger
from loco.queue.celery_app import send_hint
from loco.recipes.datasets import dataset_path
from loco.recipes.resolve import resolve
from loco.settings import Settings

_LONGEST_KEY = 255


def submit(
    ledger: Ledger,
    app: Celery,
    settings: Settings,
    request: JobRequest,
    *,
    idempotency_key: str | None = None,
) -> tuple[Job, bool]:
    """Accepts a job; no work is done here.

    Args:
        ledger: where it is recorded.
        app: sends the hint; a broker that does not answer costs nothing but a few seconds.
        settings: adapters and dataset folders.
        request: what is asked for.
        idempotency_key: the same key and request give the same job again.

    Returns:
        The job, and whether this call created it.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, InvalidRequest: see `recipes.resolve`.
        DataError: the source's file is missing, or lies where it may not be read.
        StageGap: nothing committed the stages that are left out.
        IdempotencyConflict: the key was used with another request.
    """
    digest = request_digest(request)
    if idempotency_key is not None:
        if not 0 < len(idempotency_key) <= _LONGEST_KEY:
            raise InvalidRequest(
                f"The idempotency key has {len(idempotency_key)} characters, not 1 to {_LONGEST_KEY}.",
                param="Idempotency-Key",
                hint="A random UUID is a good key.",
            )
        # before resolving: the answer to a repeat must not depend on what changed since
        if job := ledger.accepted(idempotency_key, digest):
            return job, False
    spec = resolve(settings.adapters_dir, request)
    if Stage.PREPARE in spec.stages and isinstance(spec.prepare.source, JsonlSource):
        _check_source(settings, spec.adapter, spec.prepare.source)
    spec = built_on(ledger, spec)
    job, created = ledger.submit(
        spec,
        priority=request.priority,
        metadata=request.metadata,
        idempotency_key=idempotency_key,
        request_digest=digest,
    )
    if created:
        send_hint(app, Hint(job_id=job.id, stage=spec.stages[0]))
    return job, created


def request_digest(request: JobRequest) -> str:
    """SHA-256 of the request as canonical JSON: equal for requests that mean the same."""
    document = request.model_dump(mode="json", by_alias=True)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def built_on(ledger: Ledger, spec: JobSpec) -> JobSpec:
    """The spec with `from_job` settled: the job whose outputs stand in for the stages left out.

    Raises:
        NotFound: there is no job `from_job`.
        InvalidRequest: `from_job` is of another adapter or base model, or makes no sense here.
        StageGap: `from_job`, or every job so far, has not committed the stages left out.
    """
    needed = spec.stages[0].predecessors
    if not needed:
        if spec.from_job is not None:
            raise InvalidRequest(
                "from_job stands in for stages left out, but none is.",
                param="from_job",
                hint="Leave from_job out, or name the stages to run in `stages`.",
            )
        return spec
    job_id = spec.from_job or ledger.newest(spec.adapter, spec.profile, needed[-1])
    if job_id is None:
        raise StageGap(
            f"Stage {spec.stages[0]} needs the outputs of {', '.join(needed)}, and no job of "
            f"{spec.adapter} with profile {spec.profile} has committed {needed[-1]}.",
            param="stages",
            hint="Leave `stages` out to run them all, or name a job in `from_job`.",
        )
    try:
        source = ledger.job(job_id)
    except NotFound as error:
        raise NotFound(
            f"No job {job_id!r} to build on.", param="from_job", hint="`loco jobs` lists them."
        ) from error
    if source.adapter != spec.adapter:
        raise InvalidRequest(
            f"Job {job_id} built adapter {source.adapter}, not {spec.adapter}.",
            param="from_job",
            hint=f"Name a job of {spec.adapter}.",
        )
    if source.spec.train.base_model.name != spec.train.base_model.name:
        raise InvalidRequest(
            f"Job {job_id} is built on {source.spec.train.base_model.name}, this one on "
            f"{spec.train.base_model.name}.",
            param="from_job",
            hint=f"Ask for profile {source.profile}, or for that base model.",
        )
    outputs = ledger.outputs(source)
    missing = [stage for stage in needed if stage not in outputs]
    if missing:
        raise StageGap(
            f"Job {job_id} has not committed {', '.join(missing)}, which {spec.stages[0]} needs.",
            param="from_job" if spec.from_job else "stages",
            hint=f"Start `stages` at {missing[0]}, or name another job in `from_job`.",
        )
    return spec.model_copy(update={"from_job": job_id})


def _check_source(settings: Settings, adapter: str, source: JsonlSource) -> None:
    """Refuses a file that is not there before the job is accepted, instead of in prepare."""
    try:
        dataset_path(source.path, settings.adapters_dir / adapter, settings.dataset_dirs)
    except DataError as error:
        raise DataError(error.message, param="prepare.source.path", hint=error.hint) from error
