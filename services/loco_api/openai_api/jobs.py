"""/v1/fine_tuning/jobs: jobs of the ledger, made and read as OpenAI's clients do."""

import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request

from loco.contracts.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    UnknownBaseModel,
)
from loco.contracts.jobs import Job, JobStatus, StageStatus
from loco.contracts.requests import JobRequest
from loco.contracts.specs import BaseModelSpec, JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint
from loco.queue.celery_app import send_hint
from loco.queue.submission import check_key, request_digest, submit
from loco.recipes.catalog import load_catalog
from loco.recipes.plain import ensure_plain, plain_name, plain_recipe, standard_rate
from loco.recipes.resolve import RECIPE, resolve
from loco_api.accepting import SUBMISSION
from loco_api.auth import COUNTED, SUBMIT, Caller, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.openai_api.forms import (
    DpoHyperparameters,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    FineTuningRequest,
    Hyperparameters,
    OpenAIList,
)
from loco_api.openai_api.rows import Rows, file_ids, rows_of
from loco_api.openai_api.views import checkpoints, event_view, job_view
from loco_api.uploads import sees

router = APIRouter(tags=["openai"])

_PATH = "/v1/fine_tuning/jobs"
#: Jobs read at once where a filter may leave most of them out, and how often for one answer.
_SCANNED, _MOST_SCANS = 100, 10
#: `auto` shows a small file so often that this many rows are seen, but no more than so often.
_ROWS_SEEN, _MOST_EPOCHS = 100, 25
#: Rows that the loss is measured on; a larger file is cut.
_MOST_VALIDATED = 10_000

FineTuningId = Annotated[
    str, Path(max_length=128, description="ID of a job.", examples=["20261122-143722-4f9a2c"])
]
Limit = Annotated[int, Query(ge=1, le=100, description="Entries per page.")]
After = Annotated[
    str | None, Query(max_length=128, description="Continue after this ID, the last of a page.")
]


class FineTuningJobList(OpenAIList[FineTuningJob]):
    """All jobs, newest first, including those that were not made over this API."""


class FineTuningEventList(OpenAIList[FineTuningEvent]):
    """Events of a job, newest first."""


class FineTuningCheckpointList(OpenAIList[FineTuningCheckpoint]):
    """Models that a job made."""


@router.post(
    _PATH,
    operation_id="createFineTuningJob",
    summary="Fine-tune a model",
    dependencies=[SUBMIT, COUNTED],
    responses=responses(*SUBMISSION, openai=True),
)
def create_job(
    request: FineTuningRequest,
    here: Here,
    who: Who,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="A request with the same key and body returns the same job.",
            json_schema_extra={"minLength": 1, "maxLength": 255},
        ),
    ] = None,
) -> FineTuningJob:
    """Accepts a job and answers at once. Without `adapter` it runs with a plain recipe.

    If the recipe has sets of problems, eval and the gate follow. Otherwise the job ends with a model in Ollama.
    """
    wanted = job_request(here, who, request)
    if idempotency_key is not None:
        check_key(idempotency_key)
        digest = request_digest(wanted)
        if done := here.ledger.accepted(idempotency_key, digest, owner=who.owner):
            return _view(done)
    if request.adapter is None:  # last: what is refused makes nothing
        base = _base(here, request.model)
        ensure_plain(here.settings.adapters_dir, base, request.suffix, who.owner)
    job, _ = submit(
        here.ledger,
        here.queue,
        here.settings,
        wanted,
        idempotency_key=idempotency_key,
        owner=who.owner,
        sees_all=sees(who) is None,
    )
    who.detail = f"job {job.id}"
    return _view(job)


@router.get(
    _PATH,
    operation_id="listFineTuningJobs",
    summary="List fine-tuning jobs",
    responses=responses(InvalidRequest, openai=True),
)
def list_jobs(
    request: Request,
    here: Here,
    after: After = None,
    limit: Limit = 20,
    metadata: Annotated[
        str | None,
        Query(
            alias="metadata[*]",
            max_length=512,
            description="Only jobs with this value in `metadata`: `metadata[KEY]=VALUE`.",
        ),
    ] = None,
) -> FineTuningJobList:
    """Jobs, newest first.

    With `metadata` each request searches at most the next 1,000 jobs. A page may then have fewer entries
    than `limit`, or none, and still `has_more`: continue after its `last_id`.
    """
    del metadata  # documents what is read from the query itself
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    found: list[Job] = []
    more, scans = True, 0
    while more and len(found) <= limit and scans < _MOST_SCANS:
        scans += 1
        page = here.ledger.page(after=after, limit=_SCANNED if wanted else limit + 1)
        found += [job for job in page.jobs if wanted.items() <= job.metadata.items()]
        more, after = page.more, page.last
    data = tuple(_view(job) for job in found[:limit])
    ends = _ends(data)
    if more and len(found) <= limit:
        ends["last_id"] = after  # the last one that was looked at
        return FineTuningJobList(data=data, has_more=True, **ends)
    return FineTuningJobList(data=data, has_more=len(found) > limit, **ends)


@router.get(
    _PATH + "/{job_id}",
    operation_id="getFineTuningJob",
    summary="One fine-tuning job",
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def get_job(job_id: FineTuningId, here: Here) -> FineTuningJob:
    """A job, as OpenAI's clients see it."""
    return _view(here.ledger.job(job_id))


@router.post(
    _PATH + "/{job_id}/cancel",
    operation_id="cancelFineTuningJob",
    summary="Cancel a fine-tuning job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def cancel_job(job_id: FineTuningId, here: Here, who: Who) -> FineTuningJob:
    """Stops a job for good, even a paused one."""
    job = here.ledger.job(job_id)
    who.check_may_change(job)
    if job.is_terminal and not (job.status is JobStatus.CANCELLED and job.paused):
        raise _too_late(job, "cancelled")
    return _view(here.ledger.cancel(job_id))


@router.post(
    _PATH + "/{job_id}/pause",
    operation_id="pauseFineTuningJob",
    summary="Pause a fine-tuning job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def pause_job(job_id: FineTuningId, here: Here, who: Who) -> FineTuningJob:
    """Stops a job with a checkpoint, and frees its GPU. A running stage needs some seconds to stop."""
    job = here.ledger.job(job_id)
    who.check_may_change(job)
    if job.is_terminal or (job.cancel_requested and not job.paused):
        raise _too_late(job, "paused")
    return _view(here.ledger.cancel(job_id, pause=True))


@router.post(
    _PATH + "/{job_id}/resume",
    operation_id="resumeFineTuningJob",
    summary="Resume a fine-tuning job",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest, Conflict, openai=True),
)
def resume_job(job_id: FineTuningId, here: Here, who: Who) -> FineTuningJob:
    """Queues a paused job again. Training continues from its checkpoint."""
    job = here.ledger.job(job_id)
    who.check_may_change(job)
    if not job.paused or job.status is not JobStatus.CANCELLED:
        stops = job.paused and not job.is_terminal
        raise InvalidRequest(
            f"Job {job_id} is {'still being paused' if stops else 'not paused'}.",
            param="fine_tuning_job_id",
            hint="Wait until its status is `paused`."
            if stops
            else "Only paused jobs can be resumed; `loco retry` continues a failed or cancelled one.",
        )
    job = here.ledger.retry(job_id)
    for task in job.stages:
        if task.status is StageStatus.QUEUED:
            send_hint(here.queue, Hint(job_id=job.id, stage=task.stage))
    return _view(job)


@router.get(
    _PATH + "/{job_id}/events",
    operation_id="listFineTuningEvents",
    summary="Events of a fine-tuning job",
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def list_events(
    job_id: FineTuningId, here: Here, after: After = None, limit: Limit = 20
) -> FineTuningEventList:
    """What happened, newest first. `GET /jobs/{id}/events` shows it live."""
    events = here.ledger.latest_events(job_id, before=after, limit=limit + 1)
    data = tuple(event_view(event) for event in events[:limit])
    return FineTuningEventList(data=data, has_more=len(events) > limit, **_ends(data))


@router.get(
    _PATH + "/{job_id}/checkpoints",
    operation_id="listFineTuningCheckpoints",
    summary="Checkpoints of a fine-tuning job",
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def list_checkpoints(
    job_id: FineTuningId, here: Here, after: After = None, limit: Limit = 10
) -> FineTuningCheckpointList:
    """The model of a successful job. There is only one, which `train.select` chose."""
    found = checkpoints(here.ledger.job(job_id))
    data = found[:limit] if after is None else ()
    return FineTuningCheckpointList(data=data, **_ends(data))


def job_request(here: Context, who: Caller, asked: FineTuningRequest) -> JobRequest:
    """What a request means: the recipe's values, but for what it sets itself. Nothing is made.

    Raises:
        UnknownBaseModel, UnknownAdapter, UnknownProfile, NotFound, InvalidRequest, Conflict: see there.
    """
    adapters_dir = here.settings.adapters_dir
    base = _base(here, asked.model)
    rows = rows_of(here, who, asked.training_file, "training_file")
    if rows.are_pairs is not asked.is_dpo:
        raise InvalidRequest(
            "method dpo learns from pairs, but training_file has plain rows."
            if asked.is_dpo
            else "training_file has pairs. Only method dpo learns from pairs.",
            param="training_file",
            hint="docs/openai.md shows a row for each method.",
        )
    if asked.adapter is not None and asked.suffix is not None:
        raise InvalidRequest(
            "suffix and adapter cannot both be set: the adapter's recipe names its model.",
            param="suffix",
            hint="Give only one of them.",
        )
    prepare: dict[str, Any] = {"source": rows.source, "examples": rows.count, "validation": 0}
    if asked.validation_file is not None:
        held_out = rows_of(here, who, asked.validation_file, "validation_file")
        prepare["validation_source"] = held_out.source
        prepare["validation"] = min(held_out.count, _MOST_VALIDATED)
    request = JobRequest(
        adapter=asked.adapter or plain_name(base.name, asked.suffix),
        profile=asked.profile,
        base_model=base.name,
        prepare=prepare,
        seed=asked.seed,
        metadata=asked.metadata or {},
        # a recipe may learn from pairs that this file does not hold
        train={"preference": {} if asked.is_dpo else None},
        stages=tuple(s for s in Stage if s is not Stage.EVAL),
    )
    is_new = asked.adapter is None and not (adapters_dir / request.adapter / RECIPE).is_file()
    recipe = plain_recipe(base, asked.suffix) if is_new else None
    spec = resolve(adapters_dir, request, recipe)
    train = _train(asked, spec, rows, plain=asked.adapter is None)
    stages = None if spec.eval.sets else request.stages  # without problems there is no eval
    wanted = request.model_copy(update={"train": train, "stages": stages})
    resolve(adapters_dir, wanted, recipe)
    return wanted


def _train(asked: FineTuningRequest, spec: JobSpec, rows: Rows, *, plain: bool) -> dict[str, Any]:
    """What the hyperparameters of a request change in stage train."""
    chosen = asked.chosen
    if spec.train.preference is not None:
        preference = spec.train.preference
        changes = _set(chosen, standard=preference.learning_rate)
        if chosen.batch_size != "auto":
            changes["batch_size"] = chosen.batch_size
        if isinstance(chosen, DpoHyperparameters) and chosen.beta != "auto":
            changes["beta"] = chosen.beta
        return {"epochs": 1, "preference": changes}
    changes = _set(chosen, standard=standard_rate(spec.train.base_model))
    if chosen.batch_size != "auto":
        changes |= {"batch_size": chosen.batch_size, "gradient_accumulation": 1}
    if chosen.n_epochs == "auto" and plain and rows.count * spec.train.epochs < _ROWS_SEEN:
        changes["epochs"] = min(_MOST_EPOCHS, math.ceil(_ROWS_SEEN / rows.count))
    return {**changes, "preference": None}


def _set(chosen: Hyperparameters, *, standard: float) -> dict[str, Any]:
    """Epochs and learning rate, where they are not `auto`.

    Raises:
        InvalidRequest: the learning rate would be over 1.
    """
    changes: dict[str, Any] = {}
    if chosen.n_epochs != "auto":
        changes["epochs"] = chosen.n_epochs
    if chosen.learning_rate_multiplier != "auto":
        rate = chosen.learning_rate_multiplier * standard
        if rate > 1:
            raise InvalidRequest(
                f"learning_rate_multiplier {chosen.learning_rate_multiplier:g} gives a learning "
                f"rate of {rate:.3g}. The largest is 1.",
                param="learning_rate_multiplier",
                hint=f"It multiplies {standard:g}. Usual values are 0.1 to 10.",
            )
        changes["learning_rate"] = rate
    return changes


def _base(here: Context, name: str) -> BaseModelSpec:
    """The base of a name in the catalog or in Ollama.

    Raises:
        UnknownBaseModel: there is none.
    """
    catalog = load_catalog(here.settings.adapters_dir)
    if name in catalog:
        return catalog[name]
    for base in catalog.values():
        if base.ollama == name:
            return base
    raise UnknownBaseModel(
        f"No base model {name!r:.200}. Base models here: {', '.join(sorted(catalog))}.",
        param="model",
        hint="A fine-tuned model cannot be fine-tuned again. Name a base model and send all rows.",
    )


def _view(job: Job) -> FineTuningJob:
    return job_view(job, *file_ids(job))


def _too_late(job: Job, what: str) -> InvalidRequest:
    state = job.status if job.is_terminal else "being cancelled"
    return InvalidRequest(
        f"Job {job.id} is {state}, so it cannot be {what}.", param="fine_tuning_job_id"
    )


def _ends(data: tuple[Any, ...]) -> dict[str, str | None]:
    identify: Callable[[int], str | None] = lambda at: data[at].id if data else None  # noqa: E731
    return {"first_id": identify(0), "last_id": identify(-1)}
