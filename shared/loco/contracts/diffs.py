"""What two jobs have and have not in common."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from loco.contracts.base import Contract


class Sameness(StrEnum):
    """How much alike two jobs came out."""

    #: The same bytes of training data, adapter and GGUF, and the same answers.
    IDENTICAL = "identical"
    #: The same recipe and data, losses within the tolerance, no significant difference in scores.
    EQUIVALENT = "equivalent"
    #: Something else; `reasons` says what.
    DIFFERENT = "different"


class Difference(Contract):
    """A value that differs between two jobs."""

    field: str = Field(description="What it is, with dots: `train.learning_rate`.")
    first: Any = Field(description="Its value in the first job; null where it has none.")
    second: Any = Field(description="Its value in the second job; null where it has none.")


class Figure(Contract):
    """A measured figure of two jobs, equal or not."""

    field: str = Field(
        description="`train.last_loss`, or `eval.SET.BASELINE.accuracy`, `.gain`, `.p_value`; "
        "BASELINE `candidate` is the adapter itself."
    )
    first: float | None = Field(description="Of the first job; null where it measured none.")
    second: float | None = Field(description="Of the second job; null where it measured none.")


class JobDiff(Contract):
    """Two jobs side by side."""

    object: str = Field("diff", description="Always `diff`.")
    first: str = Field(description="ID of the first job.")
    second: str = Field(description="ID of the second job.")
    verdict: Sameness = Field(description="How much alike they came out.")
    reasons: tuple[str, ...] = Field(description="Why, a sentence each.")
    recipe: tuple[Difference, ...] = Field(
        description="Fields of the resolved specs that differ, without inputs and bookkeeping."
    )
    data: tuple[Difference, ...] = Field(
        description="SHA-256 of inputs and of prepare's files, and counts of rows, that differ."
    )
    environment: tuple[Difference, ...] = Field(
        description="What the stages ran on where it differs: versions, machine, GPU, commit."
    )
    outputs: tuple[Difference, ...] = Field(
        description="SHA-256 of adapter and GGUF, and answers of eval, that differ."
    )
    scores: tuple[Figure, ...] = Field(description="Losses and scores, also equal ones.")
