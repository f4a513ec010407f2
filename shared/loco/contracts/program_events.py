"""What a stage program says while it runs: one JSON object a line on its standard output."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from loco.contracts.base import Contract
from loco.contracts.errors import ErrorBody
from loco.contracts.plans import PlanAttempt


class Progress(Contract):
    """How far a stage is. Any field may be missing. The descriptions give the units."""

    percent: float | None = Field(None, description="Work done, 0 to 100.")
    message: str | None = Field(None, description="What is being done, for people.")
    step: int | None = Field(None, description="Optimizer steps (or items) done.")
    total_steps: int | None = Field(None, description="Optimizer steps (or items) in all.")
    epoch: float | None = Field(None, description="Passes over the training data so far.")
    loss: float | None = Field(None, description="Training loss at this step (nats per token).")
    validation_loss: float | None = Field(
        None, description="Newest loss on the validation rows (nats per token)."
    )
    validation_epoch: float | None = Field(
        None, description="Passes over the training data when that loss was measured."
    )
    lowest_validation_loss: float | None = Field(
        None, description="The lowest of those losses so far, including the one before training."
    )
    learning_rate: float | None = Field(None, description="Learning rate at this step.")
    grad_norm: float | None = Field(None, description="Gradient norm before clipping.")
    tokens_per_second: float | None = Field(None, description="Tokens processed per second.")
    gpu_memory_gb: float | None = Field(
        None, description="Peak GPU memory reserved so far, in GB (10^9 bytes); 0 on a CPU."
    )
    elapsed_seconds: float | None = Field(None, description="Seconds since the stage started.")
    eta_seconds: float | None = Field(None, description="Seconds expected to remain.")
    tried: tuple[PlanAttempt, ...] | None = Field(
        None, description="Plans that were tried, if training ended because none had enough memory."
    )


class ProgressEvent(Contract):
    """A new progress reading."""

    type: Literal["progress"] = "progress"
    progress: Progress


class LogEvent(Contract):
    """A line for people."""

    type: Literal["log"] = "log"
    message: str


class CheckpointEvent(Contract):
    """A checkpoint is complete on disk and can be resumed from."""

    type: Literal["checkpoint"] = "checkpoint"
    path: str = Field(description="Absolute path of the checkpoint folder.")
    step: int = Field(description="Optimizer steps it holds.")


class ErrorEvent(Contract):
    """The program failed and says why; its exit code is 1."""

    type: Literal["error"] = "error"
    error: ErrorBody
    user_fault: bool
    retryable: bool


StageEvent = Annotated[
    ProgressEvent | LogEvent | CheckpointEvent | ErrorEvent, Field(discriminator="type")
]
parse_event: TypeAdapter[StageEvent] = TypeAdapter(StageEvent)
