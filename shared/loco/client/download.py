"""Downloads of artifacts: resumed where they stopped, checked by SHA-256, put in place whole."""

import time
from pathlib import Path

import httpx

from loco.client.http import PAUSES, Transport, path_of
from loco.contracts.artifacts import Artifact
from loco.contracts.errors import ArtifactChanged, LocoError, RangeNotSatisfiable, ServerUnreachable
from loco.contracts.files import sha256_of, sync_folder


def download(transport: Transport, job_id: str, artifact: Artifact, target: Path) -> Path:
    """Brings an artifact to `target`; a file that is already there and right stays.

    The bytes gather in a hidden neighbour named after the digest; a later call goes on from there.

    Raises:
        ServerUnreachable: the connection broke more than once without a byte in between.
        LocoError: what came is not what the job committed.
    """
    if target.is_file() and _is(target, artifact):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{artifact.sha256[:12]}.part")
    _fetch(transport, job_id, artifact, part)
    if not _is(part, artifact):
        # Something else wrote to the partial file, or it was cut by a crash: once more, from zero.
        part.unlink()
        _fetch(transport, job_id, artifact, part)
    if not _is(part, artifact):
        part.unlink()
        raise LocoError(
            f"{artifact.name} arrived with another SHA-256 than the job recorded.",
            hint="The file on the server changed, or its disk is failing. Run the job again.",
        )
    part.replace(target)
    sync_folder(target.parent)
    return target


def url_path(job_id: str, artifact: Artifact) -> str:
    """Where the API serves an artifact."""
    return path_of("jobs", job_id, "artifacts", artifact.folder, *artifact.name.split("/"))


def _is(path: Path, artifact: Artifact) -> bool:
    return path.stat().st_size == artifact.size and sha256_of(path) == artifact.sha256


def _fetch(transport: Transport, job_id: str, artifact: Artifact, part: Path) -> None:
    """Appends to the partial file until it has the artifact's size."""
    failures = 0
    part.touch()
    while (have := part.stat().st_size) < artifact.size:
        try:
            _fetch_from(transport, job_id, artifact, part, have)
        except RangeNotSatisfiable:
            part.write_bytes(b"")
        except ArtifactChanged:
            part.unlink()  # what has come is of no use either
            raise
        except ServerUnreachable:
            failures = failures + 1 if part.stat().st_size == have else 0
            if failures > len(PAUSES):
                raise
            time.sleep(PAUSES[max(failures - 1, 0)])


def _fetch_from(
    transport: Transport, job_id: str, artifact: Artifact, part: Path, have: int
) -> None:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": f'"{artifact.sha256}"'}
    path = url_path(job_id, artifact)
    with transport.stream(path, headers=headers) as answer, part.open(_mode(answer)) as file:
        for chunk in answer.iter_bytes():  # as they come: what arrived before a break is kept
            file.write(chunk)
    if part.stat().st_size == have:
        raise ServerUnreachable(f"{artifact.name}: the server sent no more bytes.")


def _mode(answer: httpx.Response) -> str:
    """206 goes on; 200 to a range request: the file changed, or the server sends it whole."""
    return "ab" if answer.status_code == 206 else "wb"
