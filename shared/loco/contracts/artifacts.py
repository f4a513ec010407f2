"""Artifacts: files a stage committed, and the inputs a job was accepted with."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_PATH
from loco.contracts.files import sha256_of
from loco.contracts.paths import RelativePath
from loco.contracts.stages import Stage

#: Types that no browser runs or draws. Whatever else a stage leaves is bytes, as a page or a picture
#: with a script in it would act under the server's address.
_MEDIA_TYPES = {
    ".gguf": "application/vnd.gguf",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".safetensors": "application/vnd.safetensors",
    ".jinja": "text/plain",
    ".log": "text/plain",
    ".yaml": "application/yaml",
    "": "text/plain",
}


#: Stands before the names of a job's inputs, as a stage's word does before those of its files.
INPUTS = "inputs"


class FrozenFile(Contract):
    """A file that a job reads, as it was when the job was accepted."""

    path: str = Field(
        max_length=4 * LONGEST_PATH,
        description="Path of the copy: relative to the adapters folder, absolute in a stage's inputs.",
    )
    sha256: str = Field(
        description="SHA-256 of the content, hexadecimal.", pattern="^[0-9a-f]{64}$"
    )
    size: int = Field(ge=0, le=2**53, description="Size in bytes.")


class Artifact(Contract):
    """A file that a stage made, or an input of the job."""

    name: RelativePath = Field(
        description="Path within the stage, e.g. `gguf/unsloth.Q4_K_M.gguf`."
    )
    stage: Stage | None = Field(
        description="The stage that wrote it. Null: an input, copied when the job was accepted."
    )
    path: RelativePath = Field(description="Path relative to the adapters folder.")
    size: int = Field(description="Size in bytes.", ge=0)
    sha256: str = Field(description="SHA-256 of the content, hexadecimal.", min_length=64)
    media_type: str = Field(description="Media type of the content.")

    @property
    def full_name(self) -> str:
        """`STAGE/NAME`, or `inputs/NAME`: unique within a job."""
        return f"{self.folder}/{self.name}"

    @property
    def folder(self) -> str:
        """The stage that wrote it, or `inputs`."""
        return INPUTS if self.stage is None else self.stage.value


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


def input_artifacts(inputs: Mapping[str, FrozenFile]) -> tuple[Artifact, ...]:
    """A job's frozen inputs as artifacts, named as recipe or request name them.

    Args:
        inputs: `JobSpec.inputs`; an absolute name loses its slash, two names of one file are one.
    """
    found: dict[str, Artifact] = {}
    for named, file in inputs.items():
        name = PurePosixPath(*(p for p in PurePosixPath(named).parts if p != "/")).as_posix()
        if name in found and found[name].sha256 != file.sha256:
            name = f"{file.sha256}/{name}"
        found[name] = Artifact(
            name=name,
            stage=None,
            path=file.path,
            size=file.size,
            sha256=file.sha256,
            media_type=media_type_of(name),
        )
    return tuple(found.values())


def media_type_of(name: str) -> str:
    """The media type by file name; `application/octet-stream` for all that is not known as harmless."""
    return _MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")
