"""/v1/files: uploaded data sets (`/datasets`) as files of OpenAI's, and the losses of jobs."""

from pathlib import PurePath
from typing import Annotated, Literal

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from loco.contracts.base import Contract
from loco.contracts.datasets import DataSet
from loco.contracts.errors import (
    BodyTooLarge,
    Conflict,
    DataError,
    DiskFull,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
)
from loco.contracts.jobs import Job
from loco.datasets.names import name_of
from loco.queue.data_sets import data_sets
from loco.queue.data_sets import delete as delete_data_set
from loco_api.auth import COUNTED, SUBMIT, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.openai_api.form import UploadForm
from loco_api.openai_api.forms import Deleted, OpenAIList
from loco_api.openai_api.rows import no_file, uploaded
from loco_api.openai_api.views import METRICS, metrics_csv, train_result
from loco_api.uploads import PIECE, finished, hanging_up, part_of, sees

router = APIRouter(tags=["openai"])

_PURPOSE = "fine-tune"
_RESULTS = "fine-tune-results"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}

FileId = Annotated[
    str, Path(max_length=200, description="ID of a file.", examples=["ds-0123456789abcdef"])
]


class FileObject(Contract):
    """An uploaded file, or the losses of a job."""

    id: str = Field(description="The data set's ID; the losses of a job are `JOB_ID-metrics`.")
    object: Literal["file"] = Field("file", description="Always `file`.")
    bytes: int = Field(description="Size.")
    created_at: int = Field(description="When it was uploaded, seconds since 1970.")
    filename: str = Field(description="Its name.")
    purpose: Literal["fine-tune", "fine-tune-results"] = Field(description="What it is for.")
    status: Literal["processed"] = Field(
        "processed", description="Always `processed`: a file with bad rows is refused at once."
    )
    expires_at: int | None = Field(None, description="Always null: files do not expire.")
    status_details: str | None = Field(None, description="Always null.")


class FileList(OpenAIList[FileObject]):
    """Uploaded files."""


@router.post(
    "/v1/files",
    operation_id="createFile",
    summary="Upload a file",
    dependencies=[SUBMIT, COUNTED],
    responses=responses(
        InvalidRequest,
        DataError,
        BodyTooLarge,
        QuotaExceeded,
        Conflict,
        DiskFull,
        openai=True,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "purpose": {"type": "string", "description": "`fine-tune`."},
                            "file": {
                                "type": "string",
                                "format": "binary",
                                "description": "Rows: JSONL with `messages`, CSV or Parquet.",
                            },
                        },
                    }
                }
            },
        }
    },
)
async def create_file(request: Request, here: Here, who: Who) -> FileObject:
    """Takes a file of rows, streams it to disk and checks every row.

    The error names the line of each bad row. The same rows under the same name are the same file.
    """
    form = UploadForm(request.headers.get("content-type", ""))
    record = await _received(request, here, who.owner, form)
    who.detail = record.id
    return _view(record)


@router.get(
    "/v1/files",
    operation_id="listFiles",
    summary="List files",
    responses=responses(InvalidRequest, openai=True),
)
def list_files(
    *,
    here: Here,
    who: Who,
    purpose: Annotated[
        str | None,
        Query(max_length=100, description="Only files for this purpose. There are no others."),
    ] = None,
    after: Annotated[
        str | None, Query(max_length=128, description="Continue after this ID, the last of a page.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Files per page.")] = 10_000,
    order: Annotated[
        Literal["asc", "desc"],
        Query(description="Order by time of upload: oldest or newest first."),
    ] = "desc",
) -> FileList:
    """Your uploads. An admin sees everybody's."""
    found = [d for d in data_sets(here.settings).list(sees(who)) if d.status == "ready"]
    if purpose not in (None, _PURPOSE):
        found = []
    if order == "asc":
        found.reverse()
    if after is not None:
        ids = [d.id for d in found]
        if after not in ids:
            raise InvalidRequest(f"There is no file {after!r} to continue after.", param="after")
        found = found[ids.index(after) + 1 :]
    data = tuple(_view(d) for d in found[:limit])
    return FileList(
        data=data,
        has_more=len(found) > limit,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )


@router.get(
    "/v1/files/{file_id}",
    operation_id="getFile",
    summary="One file",
    responses=responses(NotFound, InvalidRequest, openai=True),
)
def get_file(file_id: FileId, here: Here, who: Who) -> FileObject:
    """A file's size, name and date."""
    if file_id.endswith(METRICS):
        job, text = _losses(here, file_id)
        return FileObject(
            id=file_id,
            bytes=len(text),
            created_at=int((job.finished_at or job.created_at).timestamp()),
            filename=f"{file_id}.csv",
            purpose=_RESULTS,
        )
    return _view(uploaded(here, who, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    operation_id="getFileContent",
    summary="Content of a file",
    response_class=Response,
    responses={
        200: {
            "description": "The bytes.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "text/csv": {"schema": {"type": "string"}},
            },
        },
        **responses(NotFound, InvalidRequest, Conflict, openai=True),
    },
)
def get_file_content(file_id: FileId, here: Here, who: Who) -> Response:
    """The file as it was sent. For a job's losses: a CSV file with one row per step."""
    if file_id.endswith(METRICS):
        _, text = _losses(here, file_id)
        return Response(text, media_type="text/csv", headers=_HEADERS)
    record = uploaded(here, who, file_id)
    return FileResponse(
        data_sets(here.settings).content(record),
        media_type="application/octet-stream",
        filename=_filename(record),
        headers=_HEADERS,
    )


@router.delete(
    "/v1/files/{file_id}",
    operation_id="deleteFile",
    summary="Delete a file",
    dependencies=[SUBMIT],
    responses=responses(NotFound, InvalidRequest, Conflict, openai=True),
)
def delete_file(file_id: FileId, here: Here, who: Who) -> Deleted:
    """Removes an upload. Ended jobs keep their copy. If a job still has to read it, the answer is 409."""
    record = uploaded(here, who, file_id)
    delete_data_set(here.ledger, here.settings, record)
    return Deleted(id=file_id, object="file")


async def _received(request: Request, here: Context, owner: str, form: UploadForm) -> DataSet:
    """The body, written as it comes and looked through at its end; nothing stays of one that is refused."""
    stream = request.stream()
    waiting = bytearray()
    with hanging_up():
        async for piece in stream:
            waiting += form.feed(piece)
            if form.filename is not None:
                break
        else:
            form.finish()
        store = data_sets(here.settings)
        name = name_of(PurePath(form.filename or ""))
        record = await run_in_threadpool(store.begin, name, owner)
    try:
        async with part_of(store, record.id) as part:
            with hanging_up():
                async for piece in stream:
                    waiting += form.feed(piece)
                    if len(waiting) >= PIECE:
                        await run_in_threadpool(part.append, bytes(waiting))
                        waiting.clear()
                await run_in_threadpool(part.append, bytes(waiting))
            form.finish()
            _check_fields(form)
            found, _ = await finished(here, store, part, owner)
            return found
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(store.delete, record)
        raise


def _check_fields(form: UploadForm) -> None:
    purpose = form.fields.get("purpose")
    if purpose != _PURPOSE:
        raise InvalidRequest(
            f"purpose: {purpose!r:.100} is not supported here."
            if purpose is not None
            else "purpose: is missing.",
            param="purpose",
            hint=f"Send `{_PURPOSE}`.",
        )
    for name in form.fields:
        if name != "purpose":
            raise InvalidRequest(
                f"{name}: unknown field.",
                param=name,
                hint="Files stay until they are deleted." if name.startswith("expires") else None,
            )


def _losses(here: Context, file_id: str) -> tuple[Job, str]:
    """The job that a file of losses is of, and its content.

    Raises:
        NotFound: there is no such job, or it has not trained.
    """
    try:
        job = here.ledger.job(file_id.removesuffix(METRICS))
    except NotFound:
        raise no_file(file_id) from None
    trained = train_result(job)
    if trained is None:
        raise no_file(file_id)
    return job, metrics_csv(trained)


def _view(record: DataSet) -> FileObject:
    return FileObject(
        id=record.id,
        bytes=record.bytes,
        created_at=int(record.created_at.timestamp()),
        filename=_filename(record),
        purpose=_PURPOSE,
    )


def _filename(record: DataSet) -> str:
    return f"{record.name}.{record.format}"
