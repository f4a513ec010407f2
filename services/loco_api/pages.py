"""Lists as the API sends them: `{"object": "list", "data": [...], "has_more": false}`."""

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Path
from pydantic import Field

from loco.contracts.artifacts import Artifact
from loco.contracts.base import Contract
from loco.contracts.jobs import Job, JobEvent, JobLine, UnreadableJob, WorkerInfo

ItemT = TypeVar("ItemT")

JobId = Annotated[str, Path(description="ID of a job.", examples=["20261122-143722-4f9a2c"])]

AdapterName = Annotated[str, Path(description="Name of an adapter.", examples=["math"])]


class Page(Contract, Generic[ItemT]):
    """A part of a list."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: tuple[ItemT, ...] = Field(description="The entries.")
    has_more: bool = Field(False, description="Whether more follow after the last entry.")


class JobPage(Page[Job]):
    """Jobs, newest first. Its entries take at most about 1 MB: a page may hold fewer than `limit`."""

    unreadable: tuple[UnreadableJob, ...] = Field(
        (), description="Jobs of this page whose records cannot be read. `limit` counts them too."
    )
    last: str | None = Field(
        None,
        description="ID of the last job of this page, readable or not. Send it as `after` for "
        "the next page. Null: the page is empty.",
    )


class JobLinePage(Page[JobLine]):
    """Jobs in one line each, newest first."""


class EventPage(Page[JobEvent]):
    """Events of a job, oldest first."""


class ArtifactPage(Page[Artifact]):
    """Artifacts of a job: its inputs, then those of its stages in order."""


class WorkerPage(Page[WorkerInfo]):
    """Workers that gave a sign of life in the last minute."""
