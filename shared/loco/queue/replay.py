"""A job once more: the same spec with the same frozen inputs, whatever recipe and files say today."""

import hashlib
import json

from celery import Celery

from loco.contracts.errors import Conflict, NotFound
from loco.contracts.jobs import Job
from loco.contracts.keys import LOCAL
from loco.contracts.requests import ReplayRequest
from loco.contracts.specs import JobSpec
from loco.ledger.ledger import Ledger
from loco.queue.submission import accept, built_on
from loco.recipes.data_files import named_files, uploads_of
from loco.recipes.frozen import is_intact
from loco.recipes.resolve import RECIPE
from loco.settings import Settings

#: Folder below the adapter's where a replay's files are published: not in place of what is used.
PLACE = "replays"


def replay(
    ledger: Ledger,
    app: Celery,
    settings: Settings,
    job_id: str,
    request: ReplayRequest,
    *,
    idempotency_key: str | None = None,
    owner: str = LOCAL,
    sees_all: bool = False,
) -> tuple[Job, bool]:
    """Accepts a job with the spec and inputs of another; every stage runs anew.

    Args:
        ledger: where it is recorded.
        app: sends the hint.
        settings: adapters folder.
        job_id: the job to run once more, ended or not.
        request: what may be chosen.
        idempotency_key: the same key and request give the same job again.
        owner: whose job it is; each has idempotency keys of its own.
        sees_all: whether it may read everybody's data sets.

    Returns:
        The new job, and whether this call created it.

    Raises:
        NotFound: no such job, or it reads rows that another owner uploaded.
        Conflict: what it read is not kept, or is gone.
        StageGap: the job it builds on has lost its stages.
        IdempotencyConflict: the key was used with another request.
    """
    document = [job_id, request.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    reader = None if sees_all else owner
    return accept(
        ledger,
        app,
        lambda: _spec(ledger, settings, job_id, request, reader),
        adapters_dir=settings.adapters_dir,
        priority=request.priority,
        metadata=request.metadata,
        idempotency_key=idempotency_key,
        owner=owner,
        digest=digest,
    )


def _spec(
    ledger: Ledger, settings: Settings, job_id: str, request: ReplayRequest, reader: str | None
) -> JobSpec:
    original = ledger.job(job_id)
    if reader not in (None, original.owner) and (uploads := sorted(uploads_of(original.spec))):
        raise NotFound(
            f"Job {job_id} reads {', '.join(uploads)}, which {reader!r} has not uploaded.",
            param="job_id",
            hint="Ask its owner, or somebody with an admin key, to replay it.",
        )
    spec = built_on(ledger, original.spec)
    _check_inputs(settings, original)
    changes: dict[str, object] = {
        "reuse": False,
        "replay_of": original.id,
        "sweep": None,
    }
    if not request.promote:
        gate = spec.eval.gate.model_copy(update={"policy": "never"})
        changes["eval"] = spec.eval.model_copy(update={"gate": gate})
        changes["place"] = f"{PLACE}/{original.id}"
    return spec.model_copy(update=changes)


def _check_inputs(settings: Settings, job: Job) -> None:
    """Raises Conflict unless every file the job read is there as it was."""
    named = {
        path for stage in job.spec.stages for path in named_files(job.spec.part(stage)).values()
    }
    named.add(
        RECIPE
    )  # no stage reads it, but a job without its copy is of a release that kept none
    if unknown := sorted(named - job.spec.inputs.keys()):
        raise Conflict(
            f"An earlier release accepted job {job.id} and kept no copies, so the content of "
            f"{', '.join(unknown)} at that time is not known.",
            hint=f"Submit it again with today's files: loco submit {job.adapter} "
            f"--profile {job.profile}",
        )
    for name, frozen in job.spec.inputs.items():
        if not is_intact(settings.adapters_dir, name, frozen):
            raise Conflict(
                f"The copy of {name!r} that job {job.id} read is missing or changed: "
                f"{frozen.path} in the adapters folder should have SHA-256 {frozen.sha256}.",
                hint="Put that file back, or submit the job again with today's files.",
            )
