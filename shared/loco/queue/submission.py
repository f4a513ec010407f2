"""From a request to an accepted job: resolve it, freeze what it reads, record it, hint at it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from celery import Celery

from loco.contracts.artifacts import FrozenFile
from loco.contracts.datasets import DataSet
from loco.contracts.errors import Conflict, DataError, InvalidRequest, NotFound, StageGap
from loco.contracts.files import sha256_of
from loco.contracts.jobs import Job
from loco.contracts.keys import LOCAL
from loco.contracts.requests import JobRequest, RecipeRequest
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint, Ledger
from loco.queue.celery_app import send_hint
from loco.queue.data_sets import data_sets
from loco.recipes.data_files import check_size, dataset_path, named_files
from loco.recipes.frozen import freeze, held
from loco.recipes.resolve import RECIPE, adapter_names, resolve
from loco.recipes.swap import unchanging
from loco.recipes.uploaded import settled
from loco.settings import Settings

#: Bytes of a resolved spec as JSON; those of the bundled recipe have under 8,000.
_LARGEST_SPEC = 64 * 1024
_LONGEST_KEY = 255
#: How far ahead a job may be put off.
_LONGEST_WAIT = timedelta(days=366)
#: A recipe that is edited while it is read is read again, so many times.
_TRIES = 3


class Reader(NamedTuple):
    """Who asks for a job, and so whose data sets it may read."""

    owner: str
    #: Whether others' too, by their IDs.
    sees_all: bool


def submit(
    ledger: Ledger,
    app: Celery,
    settings: Settings,
    request: JobRequest,
    *,
    idempotency_key: str | None = None,
    owner: str = LOCAL,
    sees_all: bool = False,
) -> tuple[Job, bool]:
    """Accepts a job; no work is done here.

    Args:
        ledger: where it is recorded.
        app: sends the hint; a broker that does not answer costs nothing but a few seconds.
        settings: adapters and dataset folders.
        request: what is asked for.
        idempotency_key: the same key and request give the same job again.
        owner: whose job it is; each has idempotency keys and data sets of its own.
        sees_all: whether it may read everybody's data sets.

    Returns:
        The job, and whether this call created it.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, InvalidRequest: see `recipes.resolve`.
        DataError: a source's or set's file is missing, cannot be read, or lies where it may not be.
        DiskFull: there is no room for copies of the files it reads.
        StageGap: nothing committed the stages that are left out.
        IdempotencyConflict: the key was used with another request.
    """
    return accept(
        ledger,
        app,
        lambda: frozen_spec(ledger, settings, request, Reader(owner, sees_all)),
        adapters_dir=settings.adapters_dir,
        priority=request.priority,
        not_before=checked_time(request.not_before),
        metadata=request.metadata,
        idempotency_key=idempotency_key,
        owner=owner,
        digest=request_digest(request),
    )


def accept(
    ledger: Ledger,
    app: Celery,
    make: Callable[[], JobSpec],
    *,
    adapters_dir: Path,
    priority: int,
    not_before: datetime | None = None,
    metadata: Mapping[str, str],
    idempotency_key: str | None,
    owner: str,
    digest: str,
) -> tuple[Job, bool]:
    """Records a job, unless its key has made it before, and hints at its first stage.

    Args:
        ledger: where it is recorded.
        app: sends the hint.
        make: makes the spec; not called for a repeat, whose answer must not depend on what changed.
        adapters_dir: holds the inputs it freezes, of which none is deleted before the job is recorded.
        priority: higher runs first.
        not_before: when its first stage may begin; none: at once.
        metadata: kept with the job.
        idempotency_key: the same key and digest give the same job again.
        owner: whose job it is; each has idempotency keys of its own.
        digest: of what was asked for.
    """
    if idempotency_key is not None:
        check_key(idempotency_key)
        if job := ledger.accepted(idempotency_key, digest, owner=owner):
            return job, False
    with held(adapters_dir):
        spec = make()
        check_size_of(spec)
        job, created = ledger.submit(
            spec,
            priority=priority,
            not_before=not_before,
            metadata=metadata,
            idempotency_key=idempotency_key,
            request_digest=digest,
            owner=owner,
        )
    if created:
        send_hint(app, Hint(job_id=job.id, stage=job.spec.stages[0]))
    return job, created


def request_digest(request: RecipeRequest) -> str:
    """SHA-256 of the request as canonical JSON: equal for requests that mean the same."""
    document = request.model_dump(mode="json", by_alias=True)
    if document["not_before"] is None:  # a field that earlier releases did not have
        del document["not_before"]
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
                "from_job replaces stages that are left out, but none is left out.",
                param="from_job",
                hint="Remove from_job, or name the stages to run in `stages`.",
            )
        return spec
    job_id = spec.from_job or ledger.newest(spec.adapter, spec.profile, needed[-1])
    if job_id is None:
        raise StageGap(
            f"Stage {spec.stages[0]} needs the outputs of {', '.join(needed)}, but no job of "
            f"{spec.adapter} with profile {spec.profile} has finished {needed[-1]}.",
            param="stages",
            hint="Remove `stages` to run them all, or name a job in `from_job`.",
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
            f"Job {job_id} has not finished {', '.join(missing)}, which {spec.stages[0]} needs.",
            param="from_job" if spec.from_job else "stages",
            hint=f"Start `stages` at {missing[0]}, or name another job in `from_job`.",
        )
    return spec.model_copy(update={"from_job": job_id})


def checked_time(not_before: datetime | None) -> datetime | None:
    """A time a job shall wait for.

    Raises:
        InvalidRequest: it is further away than anybody means.
    """
    if not_before is not None and not_before - datetime.now(UTC) > _LONGEST_WAIT:
        raise InvalidRequest(
            f"not_before is {not_before.isoformat()}: more than a year ahead.",
            param="not_before",
            hint="Name a time within a year, like 2026-11-28T22:00:00+01:00.",
        )
    return not_before


def check_size_of(spec: JobSpec) -> None:
    """Refuses a spec that would make every list of jobs heavy; names what most of it is.

    Raises:
        InvalidRequest: it has more than `_LARGEST_SPEC` bytes.
    """
    size = len(spec.model_dump_json(by_alias=True).encode())
    if size <= _LARGEST_SPEC:
        return
    parts = {
        f"{stage}.{field}": value
        for stage in Stage
        for field, value in spec.part(stage).model_dump(mode="json").items()
    } | {"inputs": spec.model_dump(mode="json")["inputs"]}
    sizes = {name: len(json.dumps(value)) for name, value in parts.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    raise InvalidRequest(
        f"The resolved spec has {size:,} bytes. {_LARGEST_SPEC:,} are allowed. {largest} alone "
        f"has {sizes[largest]:,}.",
        param=largest,
        hint="Shorten it. Put texts and rows into files that the recipe names.",
    )


def check_key(key: str) -> None:
    """Raises InvalidRequest where an idempotency key is empty or too long."""
    if not 0 < len(key) <= _LONGEST_KEY:
        raise InvalidRequest(
            f"The idempotency key has {len(key)} characters. It must have 1 to {_LONGEST_KEY}.",
            param="Idempotency-Key",
            hint="A random UUID is a good key.",
        )


def frozen_spec(ledger: Ledger, settings: Settings, request: JobRequest, reader: Reader) -> JobSpec:
    """As `_taken`, while no recipe that is put changes what it reads."""
    # `resolve` checks the name: what is no adapter's is not looked into here
    is_one = request.adapter in adapter_names(settings.adapters_dir)
    with unchanging(settings.adapters_dir / request.adapter) if is_one else nullcontext():
        return _taken(ledger, settings, request, reader)


def _taken(ledger: Ledger, settings: Settings, request: JobRequest, reader: Reader) -> JobSpec:
    """The spec a request means now, with a copy of everything it was made from and will read.

    Args:
        ledger: for the job it builds on.
        settings: folders.
        request: what is asked for.
        reader: who asks.
    """
    adapters_dir = settings.adapters_dir
    store = data_sets(settings)
    for _ in range(_TRIES):
        path = adapters_dir / request.adapter / RECIPE
        # `resolve` checks the name: what is no adapter's is not read here
        before = sha256_of(path) if request.adapter in adapter_names(adapters_dir) else None
        spec = built_on(ledger, resolve(adapters_dir, request))
        read: dict[str, DataSet] = {}

        def find(name: str, read: dict[str, DataSet] = read) -> DataSet:
            found = store.get(name, reader.owner, sees_all=reader.sees_all)
            store.content(found)
            return read.setdefault(found.id, found)

        spec = settled(spec, find)
        recipe = freeze(path.resolve(), RECIPE, adapters_dir)
        if recipe.sha256 == before:
            inputs = {RECIPE: recipe, **_frozen_files(settings, spec, read)}
            return spec.model_copy(update={"inputs": inputs})
    raise Conflict(
        f"{request.adapter}/{RECIPE} is changing right now.",
        hint="Submit the job when nothing writes to the recipe.",
    )


def _frozen_files(
    settings: Settings, spec: JobSpec, read: Mapping[str, DataSet]
) -> dict[str, FrozenFile]:
    """The files that the job's stages read, frozen; a fault names the field of the request."""
    adapters_dir = settings.adapters_dir
    named = {f: p for stage in spec.stages for f, p in named_files(spec.part(stage)).items()}
    uploads = {f"{d.id}.{d.format}": d for d in read.values()}
    frozen: dict[str, FrozenFile] = {}
    for field, path in named.items():
        try:
            if path in uploads:
                frozen[path] = _frozen_upload(settings, uploads[path], path, field)
                continue
            file = dataset_path(path, adapters_dir / spec.adapter, settings.dataset_dirs)
            check_size(file, field)  # a sparse file of 4 TB is read for hours
            frozen[path] = freeze(file, path, adapters_dir)
        except DataError as error:
            raise DataError(error.message, param=field, hint=error.hint) from error
    return frozen


def _frozen_upload(settings: Settings, record: DataSet, name: str, field: str) -> FrozenFile:
    """A data set's rows, shown to be what was uploaded."""
    file = data_sets(settings).content(record)
    check_size(file, field)
    frozen = freeze(file, name, settings.adapters_dir, link=True)
    if frozen.sha256 != record.sha256:
        raise DataError(
            f"The rows of data set {record.name} ({record.id}) changed after the upload.",
            hint=f"Delete it (`loco data rm {record.id}`) and push the file again.",
        )
    return frozen
