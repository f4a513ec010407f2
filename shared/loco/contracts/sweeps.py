"""The nouns of sweeps: what is asked, and what became of each of its trainings.

A sweep is one prepare, a training for each point of a grid, and one job that goes on with the best.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, computed_field, field_validator

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME
from loco.contracts.errors import ErrorBody
from loco.contracts.jobs import JobStatus
from loco.contracts.paths import JobId
from loco.contracts.requests import RecipeRequest, plain_json
from loco.contracts.specs import Name

#: Points of one sweep.
MOST_POINTS = 64
#: Fields that one sweep varies.
MOST_FIELDS = 8

SweepId = Annotated[str, Field(pattern=r"^sweep-[0-9a-f-]{1,64}$")]


class RankBy(StrEnum):
    """The figure that says which training is best; the lowest wins."""

    #: Of the adapter that the training keeps, on rows it did not see.
    VALIDATION_LOSS = "validation_loss"
    #: Of the last step.
    TRAIN_LOSS = "train_loss"


class PointStatus(StrEnum):
    """The status of a point."""

    #: Prepare has not committed yet.
    PENDING = "pending"
    #: Waits for a worker.
    QUEUED = "queued"
    #: Trains.
    RUNNING = "running"
    #: Trained, or taken over from an earlier run with the same inputs.
    SUCCEEDED = "succeeded"
    #: Stopped early: its validation loss was worse than the median of the others.
    STOPPED = "stopped"
    #: Its training failed.
    FAILED = "failed"
    #: Its job was cancelled.
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self not in (PointStatus.PENDING, PointStatus.QUEUED, PointStatus.RUNNING)


class SweepRequest(RecipeRequest):
    """The body of `POST /sweeps`: a recipe, and the fields of train to vary."""

    grid: dict[
        Annotated[str, Field(max_length=LONGEST_NAME)],
        Annotated[list[Any], Field(min_length=1, max_length=MOST_POINTS)],
    ] = Field(
        {},
        max_length=MOST_FIELDS,
        description="Fields of train, each with its values. Every combination is a point, 64 at most.",
        examples=[{"train.learning_rate": [1e-4, 2e-4, 4e-4]}],
    )
    seeds: int = Field(
        1,
        ge=1,
        le=MOST_POINTS,
        description="Train each combination with this many seeds, starting at train.seed.",
    )
    rank_by: RankBy = Field(
        RankBy.VALIDATION_LOSS,
        description="The figure that decides: the lowest is the best. validation_loss needs "
        "prepare.validation.",
    )
    export_best: bool = Field(
        True,
        description="Export, register and measure the best. Without it the sweep ends after training.",
    )
    early_stop: bool = Field(
        True,
        description="Stop a training whose validation loss is worse than the median of the "
        "others after the same number of passes.",
    )

    @field_validator("grid")
    @classmethod
    def _values_are_plain_json(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return plain_json(grid)


class EpochLoss(Contract):
    """A loss on the validation rows."""

    epoch: float = Field(description="Passes over the training data before it was measured.")
    loss: float = Field(description="Mean loss of the answer tokens, nats per token.")


class SweepPoint(Contract):
    """One training of a sweep."""

    number: int = Field(description="Number of the point, from 1.")
    overrides: dict[str, Any] = Field(description="The fields that make it differ from the others.")
    job: JobId | None = Field(None, description="ID of its job. Null: not submitted yet.")
    status: PointStatus = Field(description="Current status.")
    percent: float | None = Field(None, description="How far its training is, 0 to 100.")
    validation_loss: float | None = Field(
        None,
        description="Loss on rows it did not train on, nats per token: of the kept adapter, or the "
        "newest so far.",
    )
    lowest_validation_loss: float | None = Field(
        None, description="The lowest measured so far, including the one before training."
    )
    train_loss: float | None = Field(None, description="Loss of the newest step, nats per token.")
    total_steps: int | None = Field(None, description="Optimizer steps of the whole training.")
    validations: tuple[EpochLoss, ...] = Field(
        (), description="The validation loss during training. While it runs: the newest."
    )
    rank: int | None = Field(
        None,
        description="1 is the best. Stopped points come after all that ended, failed ones last.",
    )
    reason: str | None = Field(None, description="Why it was stopped or failed.")


class SweepSummary(Contract):
    """A sweep without its points, as lists show it."""

    id: SweepId = Field(description="`sweep-`, the time of acceptance and a random part.")
    object: str = Field("sweep", description="Always `sweep`.")
    adapter: Name = Field(description="The adapter that is built.")
    profile: str = Field(description="The profile of its recipe.")
    owner: str | None = Field(None, description="Owner of the API key it came with.")
    status: JobStatus = Field(
        description="`running` until it ends. `failed`: no training succeeded, or a later job failed."
    )
    cancel_requested: bool = Field(False, description="Whether somebody asked to cancel it.")
    priority: int = Field(0, description="Priority of its jobs. Higher runs first.")
    metadata: dict[str, str] = Field({}, description="Labels of your own. Its jobs have them too.")
    rank_by: RankBy = Field(description="The figure that decides. The lowest wins.")
    export_best: bool = Field(description="Whether the best is exported, registered and measured.")
    early_stop: bool = Field(description="Whether trainings that fall behind are stopped early.")
    size: int = Field(description="Its points.")
    created_at: datetime = Field(description="When it was accepted.")
    finished_at: datetime | None = Field(None, description="When it ended.")
    prepare_job: JobId | None = Field(None, description="Job that prepares the rows for all.")
    best: int | None = Field(None, description="Number of the best point, once it is known.")
    final_job: JobId | None = Field(
        None, description="Job that exports, registers and measures the best."
    )
    error: ErrorBody | None = Field(None, description="Why it failed or was cancelled.")

    @computed_field(description="Whether the sweep has ended.")  # type: ignore[prop-decorator]
    @property
    def is_terminal(self) -> bool:
        """Whether the sweep has ended."""
        return self.status.is_terminal


class Sweep(SweepSummary):
    """A sweep with its points."""

    prepare_status: JobStatus | None = Field(None, description="Status of the prepare job.")
    final_status: JobStatus | None = Field(None, description="Status of the final job.")
    points: tuple[SweepPoint, ...] = Field(description="Its points, in order of their numbers.")
