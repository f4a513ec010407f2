"""What goes when a job is deleted."""

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.paths import JobId


class Removal(Contract):
    """A job that is deleted, or would be."""

    job_id: JobId = Field(description="The job.")
    size: int = Field(
        description="Bytes that become free. Published files and files that others read stay."
    )
    files: int = Field(description="Number of files deleted.")
    needed_by: tuple[str, ...] = Field(
        (), description="What needs this job. If there is anything, the job is not deleted."
    )
    cleared: bool = Field(
        True, description="False: the job is deleted, and its files follow as soon as possible."
    )
