"""GET /jobs/{id}/artifacts: the files a job reads and committed, whole or by byte range.

A path is looked up in the job's list of artifacts; it is never joined to a folder.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from os import stat_result
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Header, Path, Response
from starlette.responses import FileResponse, MalformedRangeHeader
from starlette.types import Message, Receive, Scope, Send

from loco.contracts.artifacts import Artifact, input_artifacts, media_type_of
from loco.contracts.errors import (
    ArtifactChanged,
    InvalidRequest,
    NotFound,
    RangeNotSatisfiable,
)
from loco.contracts.jobs import Job
from loco.recipes.data_files import uploads_of
from loco.running.verify import verified
from loco_api.auth import Caller, Who
from loco_api.context import Here
from loco_api.errors import ErrorAnswer, responses
from loco_api.pages import ArtifactPage, JobId

router = APIRouter(tags=["artifacts"])

_BINARY = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}
#: FileResponse also takes what Python's int() takes, `1_0` or `+1`, and `--5`.
_SINGLE_RANGE = re.compile(rb"bytes=\s*(\d+-\d*|-\d+)\s*", re.IGNORECASE)
#: Headers that FileResponse reads.
_RANGE_HEADERS = {
    "parameters": [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in {
            "Range": "One range of bytes, e.g. `bytes=0-1023`, `bytes=1024-` or `bytes=-100`.",
            "If-Range": "Send the range only if the ETag is still this one.",
        }.items()
    ]
}


@router.get(
    "/jobs/{job_id}/artifacts",
    operation_id="listArtifacts",
    summary="List a job's artifacts",
    responses=responses(NotFound, InvalidRequest),
)
def list_artifacts(job_id: JobId, here: Here, who: Who) -> ArtifactPage:
    """The job's inputs and the files of every finished stage, with size and SHA-256.

    Only the job's owner and admins see uploaded rows.
    """
    job = here.ledger.job(job_id)
    return ArtifactPage(data=(*readable_inputs(job, who), *committed(job)))


@router.head(
    "/jobs/{job_id}/artifacts/{path:path}",
    operation_id="headArtifact",
    summary="Size and digest of an artifact",
    response_class=Response,
    openapi_extra=_RANGE_HEADERS,
    responses={
        200: {"description": "Content-Length and ETag describe the file."},
        **responses(NotFound, InvalidRequest, ArtifactChanged, RangeNotSatisfiable),
    },
)
@router.get(
    "/jobs/{job_id}/artifacts/{path:path}",
    operation_id="downloadArtifact",
    summary="Download an artifact",
    response_class=Response,
    openapi_extra=_RANGE_HEADERS,
    responses={
        200: {"description": "The whole file.", **_BINARY},
        206: {"description": "The requested range. Content-Range says which.", **_BINARY},
        304: {"description": "The file is still the one named in If-None-Match."},
        **responses(NotFound, InvalidRequest, ArtifactChanged),
        416: {
            "model": ErrorAnswer,
            "description": "The range is outside the file. Content-Range says the file's size.",
        },
    },
)
def download_artifact(
    *,
    job_id: JobId,
    path: Annotated[
        str,
        Path(
            description="`STAGE/NAME` or `inputs/NAME`, or `NAME` if only one has that name.",
            examples=["export/gguf/unsloth.Q4_K_M.gguf"],
        ),
    ],
    here: Here,
    who: Who,
    if_none_match: Annotated[
        str | None, Header(description="Answer 304 if the ETag is one of these.")
    ] = None,
) -> Response:
    """The content of an artifact. `ETag` is its SHA-256 in quotes. Single ranges are supported.

    A file that changed after its stage finished is refused with `artifact_changed`. Rows
    that were uploaded are for the job's owner and admins: for others they do not exist.
    """
    job = here.ledger.job(job_id)
    artifact = find(job, path, readable_inputs(job, who))
    etag = f'"{artifact.sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
    }
    if if_none_match and _matches(if_none_match, etag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return ArtifactResponse(artifact, *_place(here.settings.adapters_dir, artifact), headers)


def committed(job: Job) -> Iterator[Artifact]:
    """The artifacts of a job's committed stages."""
    return (a for task in job.stages if task.status.is_committed for a in task.artifacts)


def readable_inputs(job: Job, who: Caller) -> tuple[Artifact, ...]:
    """The inputs of a job that the caller may read: uploaded rows are its owner's and admins'."""
    hidden = set() if who.reads_uploads_of(job) else uploads_of(job.spec)
    return input_artifacts({n: f for n, f in job.spec.inputs.items() if n not in hidden})


def find(job: Job, path: str, inputs: Sequence[Artifact]) -> Artifact:
    """The artifact a path names: `STAGE/NAME` or `inputs/NAME`, or `NAME` if only one has that name.

    Args:
        job: the job.
        path: the name.
        inputs: those of the job's that may be read.

    Raises:
        NotFound: the job has no such artifact, or several.
    """
    artifacts = list(committed(job))
    exact = [a for a in (*artifacts, *inputs) if a.full_name == path]
    # what a stage wrote goes before what it read
    found = exact or [a for a in artifacts if a.name == path]
    found = found or [a for a in inputs if a.name == path]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(
            f"Several stages of job {job.id} wrote {path!r}.",
            param="path",
            hint=f"Ask for {' or '.join(a.full_name for a in found)}.",
        )
    raise NotFound(
        f"Job {job.id} has no artifact {path!r:.200}.",
        param="path",
        hint=f"GET /jobs/{job.id}/artifacts lists what it has.",
    )


def _matches(header: str, etag: str) -> bool:
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in header.split(","))


def _place(adapters_dir: FilePath, artifact: Artifact) -> tuple[FilePath, stat_result]:
    """The committed file; the ledger says where it lies and what it holds."""
    with suppress(NotFound, OSError):
        path = verified(adapters_dir, artifact)
        return path, path.stat()
    raise _gone(artifact)


def _gone(artifact: Artifact) -> NotFound:
    return NotFound(
        f"{artifact.full_name} is no longer on the server.",
        param="path",
        hint="Somebody deleted it from the adapters folder. Run the job again.",
    )


class ArtifactResponse(FileResponse):
    """A file, or one range of it; a range outside it is refused in the API's form.

    What is no single range of bytes is answered with the whole file, as RFC 9110 (14.2) allows.

    Raises:
        RangeNotSatisfiable: no byte of the range exists.
        NotFound: the file has been deleted since it was looked up.
    """

    chunk_size = 1024 * 1024  # with 64 KiB a large file takes six times as long
    max_ranges = 1

    def __init__(
        self, artifact: Artifact, path: FilePath, found: stat_result, headers: Mapping[str, str]
    ) -> None:
        """An artifact's file as it was found."""
        name = artifact.name.rpartition("/")[2]
        kind = media_type_of(artifact.name)  # a record of an earlier release may say text/html
        super().__init__(path, headers=headers, media_type=kind, filename=name, stat_result=found)
        self._artifact = artifact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the bytes."""
        held: list[Message] = []  # the status, until the file is open

        async def send_unless_refused(message: Message) -> None:
            if message.get("status") == HTTPStatus.BAD_REQUEST:
                raise MalformedRangeHeader
            if message.get("status") == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise self._outside()
            held.append(message)
            if message["type"] != "http.response.start":
                while held:
                    await send(held.pop(0))

        async def answer(*, keep_single: bool) -> None:
            headers = [
                (name, value)
                for name, value in scope["headers"]
                if name != b"range" or (keep_single and _SINGLE_RANGE.fullmatch(value))
            ]
            await respond({**scope, "headers": headers}, receive, send_unless_refused)

        respond = super().__call__
        try:
            try:
                await answer(keep_single=True)
            except MalformedRangeHeader:  # it ends before it begins
                await answer(keep_single=False)
        except FileNotFoundError:
            raise _gone(self._artifact) from None

    def _outside(self) -> RangeNotSatisfiable:
        size = self.headers["Content-Length"]
        error = RangeNotSatisfiable(
            f"The range is outside the file's {size} bytes.",
            param="Range",
            hint=f"Ask for bytes below {size}, or leave Range out.",
        )
        error.headers = {"Content-Range": f"bytes */{size}"}
        return error
