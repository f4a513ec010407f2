"""The files of a fine-tuning job: from a file's ID to a source of rows, and from a job back to the IDs."""

from dataclasses import dataclass
from typing import Any

from loco.contracts.datasets import DataSet, Layout
from loco.contracts.errors import Conflict, NotFound
from loco.contracts.jobs import Job
from loco.contracts.sources import DatasetSource
from loco.datasets.names import is_id
from loco.queue.data_sets import data_sets
from loco_api.auth import Caller
from loco_api.context import Context
from loco_api.uploads import sees


@dataclass(frozen=True)
class Rows:
    """The rows of a file.

    Attributes:
        source: as `prepare.source` takes it.
        count: rows that can be used.
        are_pairs: whether each has a better and a worse answer.
    """

    source: dict[str, Any]
    count: int
    are_pairs: bool


def rows_of(here: Context, who: Caller, file_id: str, field: str) -> Rows:
    """The rows of a file that a request names.

    Raises:
        NotFound: this caller has no such file.
        Conflict: it is not whole yet.
    """
    record = uploaded(here, who, file_id, field)
    return Rows(
        source={"kind": "dataset", "dataset": record.id},
        count=record.rows,
        are_pairs=record.layout is Layout.PAIRS,
    )


def uploaded(here: Context, who: Caller, file_id: str, field: str = "file_id") -> DataSet:
    """The data set of a file's ID.

    Raises:
        NotFound: this caller has no such file.
        Conflict: it is not whole yet.
    """
    if not is_id(file_id):
        raise no_file(file_id, field)
    try:
        record = data_sets(here.settings).get(file_id, who.owner, sees_all=sees(who) is None)
    except NotFound:
        raise no_file(file_id, field) from None
    if record.status != "ready":
        raise Conflict(
            f"File {file_id} is still uploading: {record.bytes:,} bytes so far.",
            param=field,
            hint="Wait until the upload is complete.",
        )
    return record


def no_file(file_id: str, field: str = "file_id") -> NotFound:
    """The error of a file that is not there, or not this caller's."""
    return NotFound(
        f"No file {file_id!r:.200}.",
        param=field,
        hint="POST /v1/files uploads one, GET /v1/files lists yours.",
    )


def file_ids(job: Job) -> tuple[str, str | None]:
    """The IDs of the training and the validation file; of other sources the kind stands for the first."""
    prepare = job.spec.prepare
    trained = prepare.source
    held_out = prepare.validation_source
    return (
        trained.dataset if isinstance(trained, DatasetSource) else trained.kind,
        held_out.dataset if isinstance(held_out, DatasetSource) else None,
    )
