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

    field: str = Field(description="Name of the field, with dots: `train.learning_rate`.")
    first: Any = Field(description="Value in the first job. Null: it has none.")
    second: Any = Field(description="Value in the second job. Null: it has none.")


class Figure(Contract):
    """A measured figure of two jobs, equal or not."""

    field: str = Field(
        description="`train.last_loss`, or `eval.SET.BASELINE.accuracy`, `.gain`, `.p_value`; "
        "BASELINE `candidate` is the adapter itself."
    )
    first: float | None = Field(description="Value in the first job. Null: not measured.")
    second: float | None = Field(description="Value in the second job. Null: not measured.")


class JobDiff(Contract):
    """Two jobs side by side."""

    object: str = Field("diff", description="Always `diff`.")
    first: str = Field(description="ID of the first job.")
    second: str = Field(description="ID of the second job.")
    verdict: Sameness = Field(description="How similar the results are.")
    reasons: tuple[str, ...] = Field(description="The reasons, one sentence each.")
    recipe: tuple[Difference, ...] = Field(
        description="Fields of the resolved specs that differ, without inputs and bookkeeping."
    )
    data: tuple[Difference, ...] = Field(
        description="Inputs, files of prepare (by SHA-256) and row counts that differ."
    )
    environment: tuple[Difference, ...] = Field(
        description="Versions, machine, GPU and commit of the stages, where they differ."
    )
    outputs: tuple[Difference, ...] = Field(
        description="Adapter and GGUF (by SHA-256) and answers of eval that differ."
    )
    scores: tuple[Figure, ...] = Field(description="Losses and scores, including equal ones.")
