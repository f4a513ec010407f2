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
        description="Which attempt, counting those with a log, from 1. 0: none has a log yet."
    )
    attempts: int = Field(description="How many attempts have a log.")
    offset: int = Field(description="Byte at which `text` begins.")
    next_offset: int = Field(description="Byte at which the next page begins.")
    size: int = Field(
        description="Current size of the log in bytes. A log that grows too large is cut to half."
    )
    ended: bool = Field(description="Whether this attempt has ended.")
    text: str = Field(description="The piece of text. Bytes that are not UTF-8 show as U+FFFD.")
