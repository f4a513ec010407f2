"""Pages of the log that an attempt of a stage leaves."""

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.paths import JobId
from loco.contracts.stages import Stage

#: Bytes of a log that one answer may carry, at least and at most.
SHORTEST_PAGE = 1024
LONGEST_PAGE = 1024 * 1024


class LogPage(Contract):
    """A piece of the log of one attempt of a stage."""

    job_id: JobId = Field(description="The job.")
    stage: Stage = Field(description="The stage.")
    attempt: int = Field(
        description="Which of the attempts that left a log, from 1; 0: none has so far."
    )
    attempts: int = Field(description="How many have.")
    offset: int = Field(description="Byte at which `text` begins.")
    next_offset: int = Field(description="Byte at which the next page begins.")
    size: int = Field(
        description="Bytes of the log as of now. One that runs over is cut to its half."
    )
    ended: bool = Field(description="Whether this attempt writes no more.")
    text: str = Field(description="The piece; bytes that are no UTF-8 stand as U+FFFD.")
