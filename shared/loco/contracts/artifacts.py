"""Artifacts: files a stage committed."""

import mimetypes
from pathlib import Path

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.files import sha256_of
from loco.contracts.stages import Stage

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
