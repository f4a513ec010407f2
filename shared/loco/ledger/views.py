"""From the ledger's Redis hashes to `Job`, `Task` and `JobEvent`.

Strict on writes, tolerant here: fields that an older or newer release stored are left out, but for
what `earlier_specs` knows to be called otherwise now.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from loco.contracts.artifacts import Artifact
from loco.contracts.errors import UnreadableRecord
from loco.contracts.jobs import (
    Checkpoint,
    Failure,
    Job,
    JobEvent,
    JobLine,
    JobStatus,
    StageStatus,
    Task,
    WorkerInfo,
)
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.contracts.versions import Pointer, Promotion, Version
from loco.ledger.earlier_specs import upgraded

Fields = Mapping[str, str]
EntryT = TypeVar("EntryT")
ViewT = TypeVar("ViewT")

logger = logging.getLogger(__name__)

#: Lists whose unreadable entries this process has told of.
_told: set[str] = set()
_MOST_TOLD = 1000

#: What pydantic calls a value beyond a limit; limits of earlier releases were wider.
_LIMITS = (
    *("less_than", "less_than_equal", "string_too_long", "too_long"),
    *("string_pattern_mismatch", "value_error"),
)
_ACCEPTED_EARLIER = (
    "Most likely an earlier release with wider limits accepted the job. Submit it again within "
    "today's limits (docs/security.md). Its files stay in adapters/NAME/runs/JOB_ID. Otherwise: "
)


def mapping_of(document: Any) -> dict[str, Any]:
    """A JSON mapping that Redis holds; empty where another program left something else: nothing of it is used."""
    try:
        found = json.loads(document)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def readable(what: str, record_id: str) -> Iterator[None]:
    """Says which record it was that could not be read.

    Raises:
        UnreadableRecord: in place of what reading it raised.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        hint = ""
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            if error.title == JobSpec.__name__ and first["type"] in _LIMITS:
                hint = _ACCEPTED_EARLIER
        raise UnreadableRecord(
            f"The record of {what} {record_id!r:.100} cannot be read: {reason:.300}.",
            hint=f"{hint}Another program or a newer release wrote to locollm's Redis. The "
            "record is not used; everything else continues.",
        ) from error


def legible(
    what: str, entries: Iterable[tuple[str, EntryT]], view: Callable[[str, EntryT], ViewT]
) -> list[ViewT]:
    """Those entries of a list that can be read; the log has the first other one of each list.

    Args:
        what: says which list's entries they are.
        entries: the ID and the content of each.
        view: reads one.
    """
    found = []
    for entry_id, content in entries:
        try:
            with readable(what, entry_id):
                found.append(view(entry_id, content))
        except UnreadableRecord as error:
            if what not in _told:
                if len(_told) >= _MOST_TOLD:
                    _told.clear()
                _told.add(what)
                logger.warning(
                    "%s Later records of this list are skipped without a message.", error
                )
    return found


def hash_of(answer: Any) -> Fields:
    """A hash that Redis answered; a key of another type is answered with an error."""
    if isinstance(answer, Exception):
        raise ValueError(str(answer))
    return cast("Fields", answer)


def job_view(fields: Fields, tasks: Iterable[Fields]) -> Job:
    """A job from its hash and the hashes of its stages, in order."""
    return Job(
        id=fields["id"],
        adapter=fields["adapter"],
        profile=fields["profile"],
        owner=fields.get("owner"),
        status=JobStatus(fields["status"]),
        priority=int(fields["priority"]),
        metadata=json.loads(fields["metadata"]),
        cancel_requested=fields["cancel_requested"] == "1",
        paused=fields.get("paused") == "1",
        created_at=moment(fields["created_at"]),
        not_before=_moment_or_none(fields.get("not_before")),
        started_at=_moment_or_none(fields.get("started_at")),
        finished_at=_moment_or_none(fields.get("finished_at")),
        stages=tuple(task_view(task) for task in tasks),
        error=_failure(fields.get("error")),
        promotion=Promotion.model_validate_json(fields["promotion"], extra="ignore")
        if "promotion" in fields
        else None,
        spec=JobSpec.model_validate(upgraded(json.loads(fields["spec"])), extra="ignore"),
    )


#: Fields of a job's hash that its line is made of.
LINE_FIELDS = ("adapter", "profile", "owner", "status")


def line_view(job_id: str, answer: Any) -> JobLine:
    """A job in a line, from its `LINE_FIELDS` as Redis answered them."""
    fields = hash_of(answer)
    return JobLine(id=job_id, **dict(zip(LINE_FIELDS, fields, strict=True)))


def task_view(fields: Fields) -> Task:
    """A stage of a job from its hash."""
    progress = fields.get("progress")
    return Task(
        task_id=fields["task_id"],
        job_id=fields["job_id"],
        stage=Stage(fields["stage"]),
        status=StageStatus(fields["status"]),
        attempt=int(fields["attempt"]),
        crashes=int(fields["crashes"]),
        worker=fields.get("worker"),
        progress=Progress.model_validate_json(progress, extra="ignore") if progress else None,
        result=json.loads(fields["result"]) if "result" in fields else None,
        error=_failure(fields.get("error")),
        artifacts=tuple(
            Artifact.model_validate(a, extra="ignore")
            for a in json.loads(fields.get("artifacts", "[]"))
        ),
        checkpoints=tuple(
            Checkpoint.model_validate(c, extra="ignore")
            for c in json.loads(fields.get("checkpoints", "[]"))
        ),
        reused_from=fields.get("reused_from"),
        queued_at=_moment_or_none(fields.get("queued_at")),
        ran_seconds=int(fields["ran"]) / 1000 if "ran" in fields else None,
        started_at=_moment_or_none(fields.get("started_at")),
        finished_at=_moment_or_none(fields.get("finished_at")),
    )


def parse_event(stream_id: str, fields: Fields) -> JobEvent:
    """One entry of a job's stream, as `XREAD` and `XRANGE` give it."""
    return JobEvent(
        id=stream_id,
        type=fields["type"],
        at=moment(fields["at"]),
        stage=Stage(fields["stage"]) if fields["stage"] else None,
        data=json.loads(fields["data"]),
    )


def worker_view(fields: Fields) -> WorkerInfo:
    """A worker as last heard of; the time is the server's."""
    info = WorkerInfo.model_validate_json(fields["info"], extra="ignore")
    return info.model_copy(update={"seen_at": moment(fields["seen_at"])})


def version_view(
    number: int,
    fields: Fields,
    events: Iterable[str],
    pointer: Pointer | None,
    past: Iterable[str] = (),
) -> Version:
    """A version from its hash, its events, and what its model points to and pointed to before."""
    document = json.loads(fields["entry"])
    told = {"gate", "scores"} & fields.keys()
    promoted = pointer is not None and pointer.version == number
    return Version.model_validate(
        document
        | {name: json.loads(fields[name]) for name in told}
        | {
            "version": number,
            "digest": fields["digest"],
            "profile": document.get("profile") or fields.get("profile"),
            "promoted": promoted,
            "past": [int(before) for before in past] if promoted else [],
            "rolled_back": "rolled_back" in fields,
            "served_at": pointer.served_at if promoted and pointer else None,
            "events": [entry | {"at": moment(entry["at"])} for entry in map(json.loads, events)],
        },
        extra="ignore",
    )


def pointer_view(model: str, fields: Fields) -> Pointer:
    """What a model points to, from its hash."""
    return Pointer(
        model=model,
        adapter=fields["adapter"],
        version=int(fields["version"]),
        candidate=fields["candidate"],
        digest=fields["digest"],
        serial=int(fields["serial"]),
        served_at=_moment_or_none(fields.get("served_at")),
        served_digest=fields.get("served_digest"),
    )


def moment(milliseconds: str) -> datetime:
    """Milliseconds since 1970 as an aware time."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _moment_or_none(milliseconds: str | None) -> datetime | None:
    return moment(milliseconds) if milliseconds else None


def _failure(document: str | None) -> Failure | None:
    return Failure.model_validate_json(document, extra="ignore") if document else None
