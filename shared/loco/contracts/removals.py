"""What goes when a job, a version or an adapter is deleted."""

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


class VersionRemoval(Contract):
    """A version that is deleted."""

    adapter: str = Field(description="Whose version it was.")
    version: int = Field(description="Its number, which no other version gets.")
    job: str = Field(description="The job that built it. Its files stay until you delete it, too.")
    model: str = Field(description="Name in Ollama, without tag.")
    candidate: str = Field(description="`MODEL:JOB_ID`, which Ollama has no more.")
    stopped: bool = Field(
        False, description="Whether it served: `MODEL:latest` is taken out of Ollama, too."
    )
    cleared: bool = Field(
        True,
        description="False: Ollama did not answer. The workers take the names out as soon as it does.",
    )


class AdapterRemoval(Contract):
    """An adapter that is deleted."""

    name: str = Field(description="The adapter.")
    size: int = Field(description="Bytes of the files deleted.")
    files: int = Field(description="Number of files deleted.")
    kept: tuple[str, ...] = Field(
        (), description="What the server did not put into its folder, so it stays there."
    )


def way_out(job_id: str, needed_by: tuple[str, ...]) -> str:
    """The commands after which a job can be deleted.

    Args:
        job_id: the job.
        needed_by: what needs it, as `Removal.needed_by` names it.
    """
    steps = []
    jobs = []
    for words in (name.split() for name in needed_by):
        if words[0] == "version":
            steps.append(f"Delete the version first: `loco rm {words[3]} --version {words[1]}`.")
        elif words[0] == "sweep":
            steps.append(f"End the sweep first: `loco cancel {words[1]}`.")
        else:
            jobs.append(words[1])
    if jobs:
        steps.append(
            f"Delete these jobs in this order: `loco rm {' '.join([*reversed(jobs), job_id])}`."
        )
    return " ".join(steps)
