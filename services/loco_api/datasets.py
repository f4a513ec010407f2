"""Data sets of users: uploads that go on where they were cut off, and what came of them.

The protocol is the IETF draft "Resumable Uploads for HTTP" (draft-ietf-httpbis-resumable-upload), the
data set being the upload resource: POST begins it and may bring the whole file, HEAD says how much has
arrived, PATCH adds to it at `Upload-Offset`, and `Upload-Complete: ?1` says that nothing follows.
"""

from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.datasets import LARGEST_FILE, SHA256_PATTERN, DataSet, DataSetDetail, Format
from loco.contracts.errors import (
    BodyTooLarge,
    Conflict,
    DataError,
    DiskFull,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
)
from loco.datasets.names import checked_name
from loco.datasets.store import DataSets
from loco.datasets.uploads import Part
from loco.queue.data_sets import data_sets, delete
from loco_api.auth import COUNTED, SUBMIT, Who
from loco_api.context import Context, Here
from loco_api.errors import responses
from loco_api.pages import Page
from loco_api.upload_heads import length_of, mapping_of, sha256_of
from loco_api.uploads import PIECE, finished, hanging_up, part_of, sees

router = APIRouter(tags=["datasets"])

_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The file, or a part of it.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_OFFSET = {
    "description": "Bytes received so far.",
    "schema": {"type": "integer"},
}

DataSetId = Annotated[
    str,
    Path(
        max_length=LONGEST_NAME,
        description="ID of a data set, or a name for the newest one of that name.",
        examples=["ds-0123456789abcdef"],
    ),
]
UploadComplete = Annotated[
    Literal["?0", "?1"] | None,
    Header(description="`?1`: this is all, or the last part. `?0`: more follows. Default: `?1`."),
]


class DataSetPage(Page[DataSet]):
    """Data sets, newest first."""


@router.post(
    "/datasets",
    status_code=201,
    operation_id="createDataset",
    summary="Upload a data set",
    dependencies=[SUBMIT, COUNTED],
    response_description="The data set. Status `uploading` if `Upload-Complete: ?0` said that more follows.",
    responses={
        201: {
            "headers": {
                "Location": {"description": "The data set.", "schema": {"type": "string"}},
                "Upload-Offset": _OFFSET,
            }
        },
        **responses(
            InvalidRequest, DataError, BodyTooLarge, QuotaExceeded, DiskFull, Conflict, NotFound
        ),
    },
    openapi_extra=_BODY,
)
async def create_dataset(
    *,
    request: Request,
    response: Response,
    here: Here,
    who: Who,
    name: Annotated[
        str,
        Query(max_length=LONGEST_NAME, description="Names it.", examples=["units"]),
    ] = "data",
    file_format: Annotated[
        Format | None,
        Query(alias="format", description="Kind of file. Default: detected."),
    ] = None,
    columns: Annotated[
        list[Annotated[str, Query(max_length=2 * LONGEST_NAME)]] | None,
        Query(
            alias="map",
            max_length=20,
            description="FIELD=COLUMN, if the columns have other names.",
            examples=[["question=Frage", "answer=Antwort"]],
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        Query(
            description="Leave out rows that cannot be used. Otherwise one such row refuses the file."
        ),
    ] = False,
    upload_complete: UploadComplete = None,
    upload_length: Annotated[
        int | None, Header(ge=0, le=LARGEST_FILE, description="Bytes of the whole file.")
    ] = None,
    repr_digest: Annotated[
        str | None,
        Header(
            max_length=1000,
            description="`sha-256=:BASE64:` (RFC 9530) of the whole file. The server checks it.",
        ),
    ] = None,
) -> DataSet:
    """Takes a file of rows, checks them, and names every row that cannot be used.

    One request may send it all: `curl --data-binary @rows.csv 'http://…/datasets?name=units'`. To be able
    to continue a broken upload, start with an empty body and `Upload-Complete: ?0`, then use PATCH.
    """
    complete = upload_complete != "?0"
    store = data_sets(here.settings)
    with hanging_up():
        record = await run_in_threadpool(
            store.begin,
            checked_name(name),
            who.owner,
            length=length_of(request, upload_length, complete=complete),
            format=file_format,
            mapping=mapping_of(columns or []),
            sha256=sha256_of(repr_digest),
            skip_bad=skip_bad,
        )
    who.detail = f"{record.name} {record.id}"
    response.headers["Location"] = f"/datasets/{record.id}"
    try:
        found, is_new = await _received(
            here, store, record.id, request, 0, owner=who.owner, complete=complete
        )
    except BaseException:
        if complete:  # nobody was told its ID: it cannot be gone on with
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(store.delete, record)
        raise
    response.headers["Upload-Offset"] = str(found.bytes)
    response.headers["Location"] = f"/datasets/{found.id}"
    if not is_new:
        response.status_code = 200
    return _without_rows(found)


@router.patch(
    "/datasets/{dataset_id}",
    operation_id="continueUpload",
    summary="Continue an upload",
    dependencies=[SUBMIT],
    response_description="The data set. Status `ready` after the last part.",
    responses={
        200: {"headers": {"Upload-Offset": _OFFSET}},
        **responses(NotFound, Conflict, InvalidRequest, DataError, BodyTooLarge, DiskFull),
    },
    openapi_extra=_BODY,
)
async def continue_upload(
    *,
    dataset_id: DataSetId,
    request: Request,
    response: Response,
    here: Here,
    who: Who,
    upload_offset: Annotated[
        int,
        Header(ge=0, le=LARGEST_FILE, description="Position in the file where the body starts."),
    ],
    upload_complete: UploadComplete = None,
) -> DataSet:
    """Adds to the end of an upload. Only one request at a time may do so."""
    store = data_sets(here.settings)
    complete = upload_complete != "?0"
    with hanging_up():
        record = await run_in_threadpool(
            store.get, dataset_id, who.owner, sees_all=sees(who) is None
        )
    found, _ = await _received(
        here, store, record.id, request, upload_offset, owner=who.owner, complete=complete
    )
    response.headers["Upload-Offset"] = str(found.bytes)
    return _without_rows(found)


@router.head(
    "/datasets/{dataset_id}",
    status_code=204,
    operation_id="getUpload",
    summary="How much of an upload has arrived",
    response_class=Response,
    responses={
        204: {
            "headers": {
                "Upload-Offset": _OFFSET,
                "Upload-Complete": {
                    "description": "`?1` once it is ready.",
                    "schema": {"type": "string"},
                },
                "Upload-Length": {
                    "description": "Bytes of the whole file, if known.",
                    "schema": {"type": "integer"},
                },
            }
        },
        **responses(NotFound, InvalidRequest),
    },
)
def get_upload(dataset_id: DataSetId, here: Here, who: Who) -> Response:
    """Where PATCH must continue."""
    record = data_sets(here.settings).get(dataset_id, who.owner, sees_all=sees(who) is None)
    headers = {
        "Upload-Offset": str(record.bytes),
        "Upload-Complete": "?1" if record.status == "ready" else "?0",
        "Cache-Control": "no-store",
    }
    if record.length is not None:
        headers["Upload-Length"] = str(record.length)
    return Response(status_code=204, headers=headers)


@router.get(
    "/datasets",
    operation_id="listDatasets",
    summary="List data sets",
    responses=responses(InvalidRequest),
)
def list_datasets(
    here: Here,
    who: Who,
    after: Annotated[
        str | None,
        Query(max_length=LONGEST_NAME, description="Continue after the data set with this ID."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Data sets per page.")] = 100,
    sha256: Annotated[
        str | None, Query(pattern=SHA256_PATTERN, description="Only data sets with this SHA-256.")
    ] = None,
) -> DataSetPage:
    """Your data sets and uploads, newest first. With an admin key: everybody's."""
    found = data_sets(here.settings).list(sees(who), sha256=sha256)
    if after is not None:
        place = next((n for n, d in enumerate(found) if d.id == after), None)
        if place is None:
            raise InvalidRequest(f"after: no data set {after!r}.", param="after")
        found = found[place + 1 :]
    return DataSetPage(data=tuple(map(_without_rows, found[:limit])), has_more=len(found) > limit)


@router.get(
    "/datasets/{dataset_id}",
    operation_id="getDataset",
    summary="One data set",
    responses=responses(NotFound, InvalidRequest),
)
def get_dataset(dataset_id: DataSetId, here: Here, who: Who) -> DataSetDetail:
    """A data set with its first rows, as training uses them."""
    return data_sets(here.settings).get(dataset_id, who.owner, sees_all=sees(who) is None)


@router.delete(
    "/datasets/{dataset_id}",
    operation_id="deleteDataset",
    summary="Delete a data set",
    dependencies=[SUBMIT],
    responses=responses(NotFound, Conflict, InvalidRequest),
)
def delete_dataset(dataset_id: DataSetId, here: Here, who: Who) -> DataSet:
    """Removes a data set or an upload. Accepted jobs keep their own copy."""
    record = data_sets(here.settings).get(dataset_id, who.owner, sees_all=sees(who) is None)
    who.detail = f"{record.name} {record.id}"
    delete(here.ledger, here.settings, record)
    return _without_rows(record)


async def _received(
    here: Context,
    store: DataSets,
    dataset_id: str,
    request: Request,
    offset: int,
    *,
    owner: str,
    complete: bool,
) -> tuple[DataSetDetail, bool]:
    """Adds the body to an upload, and ends it where nothing follows.

    What had arrived when a client went away stays.
    """
    async with AsyncExitStack() as held:
        with hanging_up():
            part = await held.enter_async_context(part_of(store, dataset_id))
            if offset != part.offset:
                error = Conflict(
                    f"Upload-Offset is {offset:,}, but the server has {part.offset:,} bytes.",
                    param="Upload-Offset",
                    hint=f"Continue at {part.offset}. HEAD /datasets/{dataset_id} shows it too.",
                )
                error.headers["Upload-Offset"] = str(part.offset)
                raise error
            await _append(part, request)
        if complete:
            return await finished(here, store, part, owner)
    return await run_in_threadpool(store.get, dataset_id, None), True


async def _append(part: Part, request: Request) -> None:
    """Writes the body in pieces of a megabyte, and what there is of it when the client goes away."""
    waiting = bytearray()

    async def write() -> None:
        piece = bytes(waiting)
        waiting.clear()
        if piece:
            await run_in_threadpool(part.append, piece)

    try:
        async for piece in request.stream():
            waiting += piece
            if len(waiting) >= PIECE:
                await write()
    except ClientDisconnect as error:
        await write()
        raise InvalidRequest(
            f"The upload broke off after {part.offset:,} bytes.",
            hint="Ask with HEAD how much the server has, and continue there with PATCH.",
        ) from error
    await write()


def _without_rows(found: DataSet) -> DataSet:
    return DataSet.model_validate(found.model_dump(include=set(DataSet.model_fields)))
