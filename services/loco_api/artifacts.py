"""GET /jobs/{id}/artifacts: the files a job committed, whole or by byte range.

A path is looked up in the job's list of artifacts; it is never joined to a folder.
"""

import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, BinaryIO
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loco.contracts.artifacts import Artifact
from loco.contracts.errors import InvalidRequest, NotFound, RangeNotSatisfiable
from loco.contracts.jobs import Job
from loco_api.context import Here
from loco_api.errors import ErrorAnswer, responses
from loco_api.pages import ArtifactPage, JobId

router = APIRouter(tags=["artifacts"])

_CHUNK_BYTES = 256 * 1024
_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII)
_BINARY = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
}


@router.get(
    "/jobs/{job_id}/artifacts",
    operation_id="listArtifacts",
    summary="List a job's artifacts",
    responses=responses(NotFound, InvalidRequest),
)
def list_artifacts(job_id: JobId, here: Here) -> ArtifactPage:
    """The files of every committed stage, with size and SHA-256."""
    return ArtifactPage(data=tuple(committed(here.ledger.job(job_id))))


@router.head(
    "/jobs/{job_id}/artifacts/{path:path}",
    operation_id="headArtifact",
    summary="Size and digest of an artifact",
    response_class=Response,
    responses={
        200: {"description": "Content-Length and ETag are those of the file."},
        **responses(NotFound, InvalidRequest, RangeNotSatisfiable),
    },
)
@router.get(
    "/jobs/{job_id}/artifacts/{path:path}",
    operation_id="downloadArtifact",
    summary="Download an artifact",
    response_class=Response,
    responses={
        200: {"description": "The whole file.", **_BINARY},
        206: {"description": "The asked range; Content-Range says which.", **_BINARY},
        304: {"description": "The file is still the one named in If-None-Match."},
        **responses(NotFound, InvalidRequest),
        416: {
            "model": ErrorAnswer,
            "description": "The range lies outside the file; Content-Range says its size.",
        },
    },
)
def download_artifact(
    *,
    job_id: JobId,
    path: Annotated[
        str,
        Path(
            description="`STAGE/NAME`, or `NAME` where only one stage has it.",
            examples=["export/gguf/unsloth.Q4_K_M.gguf"],
        ),
    ],
    here: Here,
    request: Request,
    range_: Annotated[
        str | None,
        Header(
            alias="Range",
            description="One range of bytes, e.g. `bytes=0-1023`, `bytes=1024-` or `bytes=-100`.",
        ),
    ] = None,
    if_range: Annotated[
        str | None, Header(description="Serve the range only if the ETag is still this one.")
    ] = None,
    if_none_match: Annotated[
        str | None, Header(description="Answer 304 if the ETag is one of these.")
    ] = None,
) -> Response:
    """The content of an artifact. `ETag` is its SHA-256 in quotes, and single ranges are served."""
    artifact = find(here.ledger.job(job_id), path)
    etag = f'"{artifact.sha256}"'
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(artifact.name),
        "X-Content-Type-Options": "nosniff",
    }
    if if_none_match and _matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    span = None
    if range_ and (if_range is None or if_range.strip() == etag):
        span = parse_range(range_, artifact.size)
    start, stop = span or (0, artifact.size)
    file = _open(here.settings.adapters_dir, artifact)
    file.seek(start)
    headers["Content-Length"] = str(stop - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{artifact.size}"
    status = 206 if span else 200
    if request.method == "HEAD":
        file.close()
        return Response(None, status, headers, artifact.media_type)
    return FileSlice(file, stop - start, status, headers, artifact.media_type)


def committed(job: Job) -> Iterator[Artifact]:
    """The artifacts of a job's committed stages."""
    return (a for task in job.stages if task.status.is_committed for a in task.artifacts)


def find(job: Job, path: str) -> Artifact:
    """The artifact a path names: `STAGE/NAME`, or `NAME` where only one stage has it.

    Raises:
        NotFound: the job has no such artifact, or several.
    """
    artifacts = list(committed(job))
    exact = [a for a in artifacts if f"{a.stage}/{a.name}" == path]
    found = exact or [a for a in artifacts if a.name == path]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFound(
            f"Several stages of job {job.id} wrote {path!r}.",
            param="path",
            hint=f"Ask for {' or '.join(f'{a.stage}/{a.name}' for a in found)}.",
        )
    raise NotFound(
        f"Job {job.id} has no artifact {path!r:.200}.",
        param="path",
        hint=f"GET /jobs/{job.id}/artifacts lists what it has.",
    )


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes a Range header asks for, as (start, stop); None where the whole file is due.

    As RFC 9110 allows, what is no single range of bytes is answered with the whole file.

    Raises:
        RangeNotSatisfiable: no byte of the range exists.
    """
    match = _ONE_RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        error = RangeNotSatisfiable(
            f"Range {header!r:.80} lies outside the file's {size} bytes.",
            param="Range",
            hint=f"Ask below {size}, or leave Range out.",
        )
        error.headers = {"Content-Range": f"bytes */{size}"}
        raise error
    return start, stop


def _matches(header: str, etag: str) -> bool:
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in header.split(","))


def _disposition(name: str) -> str:
    base = name.rpartition("/")[2]
    if base == quote(base):
        return f'attachment; filename="{base}"'
    return f"attachment; filename*=utf-8''{quote(base)}"


def _open(adapters_dir: FilePath, artifact: Artifact) -> BinaryIO:
    """Opens the committed file; the ledger says where it lies, the folder that it is still there."""
    path = (adapters_dir / artifact.path).resolve()
    if path.is_relative_to(adapters_dir.resolve()) and path.is_file():
        file = path.open("rb")
        if file.seek(0, 2) == artifact.size:
            return file
        file.close()
    raise NotFound(
        f"{artifact.stage}/{artifact.name} is no longer on the server as it was committed.",
        param="path",
        hint="It was deleted or changed under the adapters folder; run the job again.",
    )


class FileSlice(StreamingResponse):
    """The next bytes of a file; closes it however the answer ends."""

    def __init__(
        self, file: BinaryIO, count: int, status: int, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(_read(file, count), status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the bytes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _read(file: BinaryIO, count: int) -> Iterator[bytes]:
    while count > 0 and (chunk := file.read(min(count, _CHUNK_BYTES))):
        count -= len(chunk)
        yield chunk
