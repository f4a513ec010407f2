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
    last_id: str | None = Field(None, description="ID of the last entry: `after` of the next page.")


class Hyperparameters(Contract):
    """How the adapter is trained; `auto`: as the recipe says."""

    n_epochs: (
        Annotated[int, Field(ge=1, le=1000)] | Annotated[float, Field(gt=0, le=1000)] | Auto
    ) = Field("auto", description="Passes over the rows.")
    batch_size: Annotated[int, Field(ge=1, le=MOST_ROWS_A_STEP)] | Auto = Field(
        "auto", description="Rows an optimizer step."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = Field(
        "auto", description="Multiplies the standard learning rate of the base model."
    )


class Supervised(Contract):
    """Training on the answers of the rows."""

    hyperparameters: Hyperparameters = Field(Hyperparameters(), description="How it is trained.")


class DpoHyperparameters(Hyperparameters):
    """How the adapter learns from pairs; `auto`: as train.preference has it by default."""

    beta: Annotated[float, Field(gt=0, le=10)] | Auto = Field(
        "auto", description="Strength of the pull to the reference."
    )


class Dpo(Contract):
    """Training on pairs of a better and a worse answer."""

    hyperparameters: DpoHyperparameters = Field(
        DpoHyperparameters(), description="How it is trained."
    )


class Method(Contract):
    """How the model learns."""

    type: Literal["supervised", "dpo"] = Field(
        description="`supervised`: from the answers of the rows. `dpo`: one pass over the better answers of "
        "pairs, then direct preference optimization."
    )
    supervised: Supervised | None = Field(None, description="Settings of `supervised`.")
    dpo: Dpo | None = Field(None, description="Settings of `dpo`.")

    @field_validator("type", mode="before")
    @classmethod
    def _says_what_there_is(cls, value: Any) -> Any:
        if value == "reinforcement":
            raise ValueError("this server trains `supervised` and `dpo`")
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
        description="ID of a file to measure the loss on; none: it is not measured.",
    )
    hyperparameters: Hyperparameters | None = Field(
        None, description="As those of `method`, which go before these."
    )
    method: Method | None = Field(None, description="How the model learns; none: `supervised`.")
    suffix: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Becomes part of the model's name.",
        examples=["support"],
    )
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="Seed of every stage.")
    metadata: Metadata | None = Field(None, description=METADATA)
    integrations: tuple[Any, ...] | None = Field(
        None, max_length=100, description="None: this server reports to no other service."
    )
    adapter: str | None = Field(
        None,
        max_length=LONGEST_NAME,
        description="Of this server: the adapter whose recipe says the rest, eval and gate too; "
        "none: a plain recipe.",
    )
    profile: str = Field(
        DEFAULT_PROFILE,
        max_length=LONGEST_NAME,
        description="Of this server: the profile of that recipe.",
    )

    @field_validator("integrations")
    @classmethod
    def _reports_to_nobody(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server reports to no other service; leave it out")
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

    code: str = Field(description="Stable word for programs.")
    message: str = Field(description="What went wrong, and what to do about it.")
    param: str | None = Field(None, description="The field at fault, if one is.")


JobState = Literal[
    "validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"
]


class FineTuningJob(Contract):
    """A job of the ledger as OpenAI's clients see it; `GET /jobs/{id}` has all of it."""

    id: str = Field(description="The job's ID, the same as everywhere else here.")
    object: Literal["fine_tuning.job"] = Field(
        "fine_tuning.job", description="Always `fine_tuning.job`."
    )
    created_at: int = Field(description="When it was accepted, seconds since 1970.")
    error: JobError | None = Field(None, description="Why it failed.")
    fine_tuned_model: str | None = Field(
        None, description="What `POST /v1/chat/completions` takes as `model`, once it succeeded."
    )
    finished_at: int | None = Field(None, description="When it ended, seconds since 1970.")
    hyperparameters: Hyperparameters = Field(description="Those it is trained with.")
    model: str = Field(description="The base model.")
    organization_id: str = Field(description="The job's owner.")
    result_files: tuple[str, ...] = Field(
        (), description="ID of a CSV file with the losses, step by step."
    )
    status: JobState = Field(
        description="`validating_files` until the rows are prepared, then `queued` until training starts."
    )
    trained_tokens: int | None = Field(None, description="Tokens of all epochs, once it trained.")
    training_file: str = Field(
        description="ID of the file; of a job that was made otherwise, its source in a word."
    )
    validation_file: str | None = Field(None, description="ID of the validation file, if one.")
    seed: int = Field(description="Seed of every stage.")
    estimated_finish: int | None = Field(
        None, description="When training ends by its present speed; none: it does not run."
    )
    integrations: tuple[str, ...] = Field((), description="Always empty.")
    metadata: dict[str, str] = Field({}, description="Yours; not interpreted.")
    method: Method | None = Field(None, description="How it is trained.")
    adapter: str = Field(description="Of this server: whose recipe it is.")


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
    data: dict[str, Any] = Field({}, description="The same for programs.")


class CheckpointMetrics(Contract):
    """What was measured at a checkpoint."""

    step: int = Field(description="Optimizer steps done.")
    train_loss: float | None = Field(None, description="Loss of that step.")
    valid_loss: float | None = Field(None, description="Loss on the validation rows.")
    full_valid_loss: float | None = Field(None, description="The same: all of them are measured.")


class FineTuningCheckpoint(Contract):
    """A model that a fine-tuning job left."""

    id: str = Field(description="ID of the checkpoint.")
    object: Literal["fine_tuning.job.checkpoint"] = Field(
        "fine_tuning.job.checkpoint", description="Always `fine_tuning.job.checkpoint`."
    )
    created_at: int = Field(description="When it was made, seconds since 1970.")
    fine_tuned_model_checkpoint: str = Field(description="What chats take as `model`.")
    fine_tuning_job_id: str = Field(description="The job.")
    metrics: CheckpointMetrics = Field(description="What was measured there.")
    step_number: int = Field(description="Optimizer steps done.")


class OpenAIModel(Contract):
    """A model."""

    id: str = Field(description="Its name.")
    object: Literal["model"] = Field("model", description="Always `model`.")
    created: int = Field(
        description="When it changed last in Ollama, seconds since 1970; 0: never."
    )
    owned_by: str = Field(
        description="`locollm`: built here. `base`: of the catalog, to be fine-tuned. `ollama`: another."
    )


class Deleted(Contract):
    """What was deleted."""

    id: str = Field(description="Its ID.")
    object: str = Field(description="What it was: `model` or `file`.")
    deleted: Literal[True] = Field(True, description="Always true.")
