"""What OpenAI's clients send and read: fine-tuning jobs, their events and checkpoints, models, lists.

Field for field as the `openai` package has them; what this server adds is said to be its own.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, field_validator

from loco.contracts.base import Contract
from loco.contracts.bounds import LONGEST_NAME, MOST_ROWS_A_STEP
from loco.contracts.evaluation import LARGEST_SEED
from loco.contracts.requests import DEFAULT_PROFILE, METADATA, Metadata

ItemT = TypeVar("ItemT")
Auto = Literal["auto"]


class OpenAIList(Contract, Generic[ItemT]):
    """A part of a list, as OpenAI's clients page through it."""

    object: Literal["list"] = Field("list", description="Always `list`.")
    data: tuple[ItemT, ...] = Field(description="The entries.")
    has_more: bool = Field(False, description="Whether more follow after the last entry.")
    first_id: str | None = Field(None, description="ID of the first entry.")
    last_id: str | None = Field(
        None, description="ID of the last entry. Send it as `after` for the next page."
    )


class Hyperparameters(Contract):
    """How to train the adapter. `auto`: as the recipe says."""

    n_epochs: (
        Annotated[int, Field(ge=1, le=1000)] | Annotated[float, Field(gt=0, le=1000)] | Auto
    ) = Field("auto", description="Passes over the rows.")
    batch_size: Annotated[int, Field(ge=1, le=MOST_ROWS_A_STEP)] | Auto = Field(
        "auto", description="Rows per optimizer step."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = Field(
        "auto", description="Multiplies the standard learning rate of the base model."
    )


class Supervised(Contract):
    """Training on the answers of the rows."""

    hyperparameters: Hyperparameters = Field(
        Hyperparameters(), description="Method and settings of the training."
    )


class DpoHyperparameters(Hyperparameters):
    """How the adapter learns from pairs. `auto`: the defaults of train.preference."""

    beta: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto", description="How strongly training stays close to the reference."
    )


class Dpo(Contract):
    """Training on pairs of a better and a worse answer."""

    hyperparameters: DpoHyperparameters = Field(
        DpoHyperparameters(), description="Method and settings of the training."
    )


class Method(Contract):
    """How the model learns."""

    type: Literal["supervised", "dpo"] = Field(
        description="`supervised`: learn from the answers of the rows. `dpo`: one pass over the "
        "better answers of pairs, then direct preference optimization."
    )
    supervised: Supervised | None = Field(None, description="Settings of `supervised`.")
    dpo: Dpo | None = Field(None, description="Settings of `dpo`.")

    @field_validator("type", mode="before")
    @classmethod
    def _says_what_there_is(cls, value: Any) -> Any:
        if value == "reinforcement":
            raise ValueError("this server supports `supervised` and `dpo`")
        return value


class FineTuningRequest(Contract):
    """The body of `POST /v1/fine_tuning/jobs`."""

    model: str = Field(
        max_length=LONGEST_NAME,
        description="A base model: its name in the catalog, or in Ollama.",
        examples=["qwen3-4b"],
    )
    training_file: str = Field(max_length=LONGEST_NAME, description="ID of an uploaded file.")
    validation_file: str | None = Field(
        None,
        max_length=LONGEST_NAME,
        description="ID of a file to measure the loss on. Null: the loss is not measured.",
    )
    hyperparameters: Hyperparameters | None = Field(
        None, description="The same as in `method`, which overrides them."
    )
    method: Method | None = Field(None, description="How the model learns. Null: `supervised`.")
    suffix: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Becomes part of the model's name.",
        examples=["support"],
    )
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Seed for every stage.")
    metadata: Metadata | None = Field(None, description=METADATA)
    integrations: tuple[Any, ...] | None = Field(
        None, max_length=100, description="Always null: this server reports to no other service."
    )
    adapter: str | None = Field(
        None,
        max_length=LONGEST_NAME,
        description="Only on this server: the adapter whose recipe gives all other settings, "
        "including eval and gate. Null: a plain recipe.",
    )
    profile: str = Field(
        DEFAULT_PROFILE,
        max_length=LONGEST_NAME,
        description="Only on this server: the profile of that recipe.",
    )

    @field_validator("integrations")
    @classmethod
    def _reports_to_nobody(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server reports to no other service. Leave it out")
        return value

    @property
    def is_dpo(self) -> bool:
        """Whether it learns from pairs."""
        return self.method is not None and self.method.type == "dpo"

    @property
    def chosen(self) -> Hyperparameters:
        """The hyperparameters that count."""
        if self.method is not None and self.method.type == "dpo":
            return self.method.dpo.hyperparameters if self.method.dpo else DpoHyperparameters()
        if self.method is not None and self.method.supervised is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


class JobError(Contract):
    """Why a fine-tuning job failed."""

    code: str = Field(description="Stable code for programs.")
    message: str = Field(description="What went wrong, and what to do about it.")
    param: str | None = Field(None, description="The field that caused it, if any.")


JobState = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]


class FineTuningJob(Contract):
    """A job as OpenAI's clients see it. `GET /jobs/{id}` shows all of it."""

    id: str = Field(description="The job's ID, the same as in the rest of this API.")
    object: Literal["fine_tuning.job"] = Field(
        "fine_tuning.job", description="Always `fine_tuning.job`."
    )
    created_at: int = Field(description="When it was accepted, seconds since 1970.")
    error: JobError | None = Field(None, description="Why it failed.")
    fine_tuned_model: str | None = Field(
        None, description="The `model` for `POST /v1/chat/completions`, once the job has succeeded."
    )
    finished_at: int | None = Field(None, description="When it ended, seconds since 1970.")
    hyperparameters: Hyperparameters = Field(description="The hyperparameters of the training.")
    model: str = Field(description="The base model.")
    organization_id: str = Field(description="The job's owner.")
    result_files: tuple[str, ...] = Field(
        (), description="ID of a CSV file with the losses, step by step."
    )
    status: JobState = Field(
        description="`validating_files` until the rows are prepared, then `queued` until training starts."
    )
    trained_tokens: int | None = Field(
        None, description="Tokens of all epochs, once training has ended."
    )
    training_file: str = Field(
        description="ID of the file. If the job was made another way: its source in a word."
    )
    validation_file: str | None = Field(None, description="ID of the validation file, if any.")
    seed: int = Field(description="Seed for every stage.")
    estimated_finish: int | None = Field(
        None, description="When training will end at its current speed. Null: it is not running."
    )
    integrations: tuple[str, ...] = Field((), description="Always empty.")
    metadata: dict[str, str] = Field(
        {}, description="Labels of your own, which the server only stores."
    )
    method: Method | None = Field(None, description="Method and settings of the training.")
    adapter: str = Field(description="Only on this server: the adapter whose recipe it uses.")


class FineTuningEvent(Contract):
    """Something that happened to a fine-tuning job."""

    id: str = Field(description="ID of the event.")
    object: Literal["fine_tuning.job.event"] = Field(
        "fine_tuning.job.event", description="Always `fine_tuning.job.event`."
    )
    created_at: int = Field(description="When it happened, seconds since 1970.")
    level: Literal["info", "warn", "error"] = Field(description="How bad it is.")
    message: str = Field(description="What happened, for people.")
    type: Literal["message", "metrics"] = Field(
        description="`metrics`: `data` holds `step`, `total_steps`, `train_loss`, `valid_loss`."
    )
    data: dict[str, Any] = Field({}, description="The same, for programs.")


class CheckpointMetrics(Contract):
    """What was measured at a checkpoint."""

    step: int = Field(description="Optimizer steps done.")
    train_loss: float | None = Field(None, description="Loss of that step.")
    valid_loss: float | None = Field(None, description="Loss on the validation rows.")
    full_valid_loss: float | None = Field(
        None, description="The same, because all validation rows are measured."
    )


class FineTuningCheckpoint(Contract):
    """A model that a fine-tuning job made."""

    id: str = Field(description="ID of the checkpoint.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(
        "fine_tuning.job.checkpoint", description="Always `fine_tuning.job.checkpoint`."
    )
    created_at: int = Field(description="When it was made, seconds since 1970.")
    fine_tuned_model_checkpoint: str = Field(description="The `model` for chats.")
    fine_tuning_job_id: str = Field(description="The job.")
    metrics: CheckpointMetrics = Field(description="Figures measured at this step.")
    step_number: int = Field(description="Optimizer steps done.")


class OpenAIModel(Contract):
    """A model."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    created: int = Field(
        description="When it last changed in Ollama, seconds since 1970. 0: never."
    )
    owned_by: str = Field(
        description="`locollm`: built here. `base`: a base model to fine-tune. `ollama`: another model "
        "in Ollama."
    )


class Deleted(Contract):
    """What was deleted."""

    id: str = Field(description="Its ID.")
    object: str = Field(description="What was deleted: `model` or `file`.")
    deleted: Literal[True] = Field(True, description="Always true.")
