"""Artifacts: files a stage committed, and how files are written so that no reader sees half of one."""

import hashlib
import mimetypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from loco.contracts import Contract
from loco.stages import Stage

_MEDIA_TYPES = {
    ".gguf": "application/vnd.gguf",
    ".jsonl": "application/jsonl",
    ".safetensors": "application/vnd.safetensors",
    ".jinja": "text/plain",
    ".log": "text/plain",
    "": "text/plain",
}


class Artifact(Contract):
    """A file a stage committed."""

    name: str = Field(description="Path within the stage, e.g. `gguf/unsloth.Q4_K_M.gguf`.")
    stage: Stage = Field(description="The stage that wrote it.")
    path: str = Field(description="Path relative to the adapters folder.")
    size: int = Field(description="Size in bytes.", ge=0)
    sha256: str = Field(description="SHA-256 of the content, hexadecimal.", min_length=64)
    media_type: str = Field(description="Media type of the content.")


def describe(root: Path, path: Path, *, name: str, stage: Stage) -> Artifact:
    """The artifact record of a file, read once for its digest.

    Args:
        root: the adapters folder; `path` lies below it.
        path: the file.
        name: name within the stage.
        stage: the stage that wrote it.
    """
    return Artifact(
        name=name,
        stage=stage,
        path=path.resolve().relative_to(root.resolve()).as_posix(),
        size=path.stat().st_size,
        sha256=sha256_of(path),
        media_type=media_type_of(name),
    )


def media_type_of(name: str) -> str:
    """The media type by file name."""
    suffix = Path(name).suffix
    guessed = _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    return guessed or "application/octet-stream"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary neighbour of `path`; on success it is synced and renamed over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Makes renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
