"""What goes when a job is deleted."""

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.paths import JobId


class Removal(Contract):
    """A job that is deleted, or would be."""

    job_id: JobId = Field(description="The job.")
    size: int = Field(
        description="Bytes that become free; files that are published or that others read stay."
    )
    files: int = Field(description="Files that go.")
    needed_by: tuple[str, ...] = Field(
        (), description="What descends from it; while there is any, it is not deleted."
    )
    cleared: bool = Field(
        True, description="False: the job is gone, and its files follow as soon as they can."
    )
