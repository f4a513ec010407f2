"""Jobs and events of the ledger as OpenAI's clients see them: pure functions, nothing is stored for them."""

import csv
import io
from datetime import datetime
from typing import Any

from loco.contracts.base import Contract
from loco.contracts.jobs import Job, JobEvent, JobStatus, StageStatus
from loco.contracts.results import LoggedStep, RegisterResult, ValidationLoss
from loco.contracts.specs import PreferenceSpec
from loco.contracts.stages import Stage
from loco.recipes.plain import standard_rate
from loco_api.openai_api.forms import (
    CheckpointMetrics,
    Dpo,
    DpoHyperparameters,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    Hyperparameters,
    JobError,
    JobState,
    Method,
    Supervised,
)

#: Behind a job's ID: the file with its losses.
METRICS = "-metrics"
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")

_WARNINGS = ("stage.retry", "job.cancel_requested", "version.refused", "version.not_promoted")


class Trained(Contract):
    """What is shown of a training's result, which any release writes."""

    tokens: int
    total_steps: int
    log: tuple[LoggedStep, ...]
    selected_step: int | None = None
    validations: tuple[ValidationLoss, ...] = ()
    validation_loss: float | None = None


def job_view(job: Job, training_file: str, validation_file: str | None) -> FineTuningJob:
    """A job.

    Args:
        job: of the ledger.
        training_file: ID of its file.
        validation_file: ID of the file its loss is measured on, if one.
    """
    method = _method(job)
    trained = train_result(job)
    learnt = method.dpo or method.supervised
    assert learnt is not None
    return FineTuningJob(
        id=job.id,
        created_at=_seconds(job.created_at),
        error=_error(job),
        fine_tuned_model=model_of(job),
        finished_at=_seconds(job.finished_at) if job.finished_at else None,
        hyperparameters=Hyperparameters.model_validate(
            learnt.hyperparameters.model_dump(exclude={"beta"})
        ),
        model=job.spec.train.base_model.name,
        organization_id=job.owner or "unknown",
        result_files=(job.id + METRICS,) if trained and job.is_terminal else (),
        status=_state(job),
        trained_tokens=_tokens(trained) if trained else None,
        training_file=training_file,
        validation_file=validation_file,
        seed=job.spec.seed,
        estimated_finish=_estimated(job),
        metadata=job.metadata,
        method=method,
        adapter=job.adapter,
    )


def model_of(job: Job) -> str | None:
    """The candidate that a job left in Ollama; None: it did not, or not yet."""
    task = job.stage(Stage.REGISTER)
    if task is None or not task.status.is_committed or job.status is not JobStatus.SUCCEEDED:
        return None
    return RegisterResult.model_validate(task.result, extra="ignore").candidate


def train_result(job: Job) -> Trained | None:
    """What a job's training measured; None: it has not committed."""
    task = job.stage(Stage.TRAIN)
    if task is None or not task.status.is_committed:
        return None
    return Trained.model_validate(task.result, extra="ignore")


def checkpoints(job: Job) -> tuple[FineTuningCheckpoint, ...]:
    """The one model a job leaves: the adapter that `train.select` kept."""
    model, trained = model_of(job), train_result(job)
    task = job.stage(Stage.TRAIN)
    if model is None or trained is None or task is None:
        return ()
    step = trained.selected_step if trained.selected_step is not None else trained.total_steps
    loss = next((entry.loss for entry in trained.log if entry.step == step), None)
    made = task.finished_at or job.created_at
    return (
        FineTuningCheckpoint(
            id=f"{job.id}-step-{step}",
            created_at=_seconds(made),
            fine_tuned_model_checkpoint=model,
            fine_tuning_job_id=job.id,
            metrics=CheckpointMetrics(
                step=step,
                train_loss=loss,
                valid_loss=trained.validation_loss,
                full_valid_loss=trained.validation_loss,
            ),
            step_number=step,
        ),
    )


def metrics_csv(trained: Trained) -> str:
    """The losses step by step, in OpenAI's columns; accuracies are not measured and stay empty."""
    valid = {entry.step: entry.loss for entry in trained.validations}
    train = {entry.step: entry.loss for entry in trained.log}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for step in sorted(valid.keys() | train.keys()):
        writer.writerow((step, train.get(step, ""), "", valid.get(step, ""), ""))
    return file.getvalue()


def event_view(event: JobEvent) -> FineTuningEvent:
    """An event."""
    metrics = _metrics(event)
    failed = event.type in ("job.failed", "stage.failed")
    level = "error" if failed else "warn" if event.type in _WARNINGS else "info"
    return FineTuningEvent(
        id=event.id,
        created_at=_seconds(event.at),
        level=level,
        message=_message(event, metrics),
        type="metrics" if metrics else "message",
        data=metrics or {},
    )


def _state(job: Job) -> JobState:
    """Files count as validated once prepare has read them; then the job waits for a trainer."""
    if job.status is JobStatus.CANCELLED:
        return "paused" if job.paused else "cancelled"
    if job.status is JobStatus.SUCCEEDED:
        return "succeeded"
    if job.status is JobStatus.FAILED:
        return "failed"
    prepare, train = job.stage(Stage.PREPARE), job.stage(Stage.TRAIN)
    if prepare is not None and not prepare.status.is_committed:
        return "validating_files"
    if train is not None and train.started_at is None and not train.status.is_terminal:
        return "queued"
    return "queued" if job.status is JobStatus.QUEUED else "running"


def _method(job: Job) -> Method:
    """How a job's model learns, every `auto` filled in."""
    train = job.spec.train
    pairs = train.preference
    if pairs is None:
        multiplier = train.learning_rate / standard_rate(train.base_model)
        chosen = Hyperparameters(
            n_epochs=_whole(train.epochs),
            batch_size=train.step_rows,
            learning_rate_multiplier=round(multiplier, 6),
        )
        return Method(type="supervised", supervised=Supervised(hyperparameters=chosen))
    standard = PreferenceSpec().learning_rate
    learnt = DpoHyperparameters(
        n_epochs=_whole(pairs.epochs),
        batch_size=pairs.batch_size,
        learning_rate_multiplier=round(pairs.learning_rate / standard, 6),
        beta=pairs.beta,
    )
    return Method(type="dpo", dpo=Dpo(hyperparameters=learnt))


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _error(job: Job) -> JobError | None:
    if job.error is None:
        return None
    words = " ".join(filter(None, (job.error.message, job.error.hint)))
    return JobError(
        code=job.error.code,
        message=f"Stage {job.error.stage}: {words}",
        param="training_file" if job.error.stage is Stage.PREPARE else None,
    )


def _tokens(trained: Trained) -> int:
    passes = max((entry.epoch for entry in trained.log if entry.part == "training"), default=1.0)
    return round(trained.tokens * passes)


def _estimated(job: Job) -> int | None:
    train = job.stage(Stage.TRAIN)
    if train is None or train.status is not StageStatus.RUNNING or train.started_at is None:
        return None
    told = train.progress
    if told is None or told.eta_seconds is None or told.elapsed_seconds is None:
        return None
    return int(train.started_at.timestamp() + told.elapsed_seconds + told.eta_seconds)


def _metrics(event: JobEvent) -> dict[str, Any] | None:
    if event.type != "stage.progress" or event.stage is not Stage.TRAIN:
        return None
    if event.data.get("step") is None or event.data.get("loss") is None:
        return None
    named = {"step": "step", "total_steps": "total_steps", "epoch": "epoch", "loss": "train_loss"}
    named |= {"validation_loss": "valid_loss", "learning_rate": "learning_rate"}
    return {name: event.data[field] for field, name in named.items() if field in event.data}


def _message(event: JobEvent, metrics: dict[str, Any] | None) -> str:
    if metrics is not None:
        loss = metrics["train_loss"]
        return f"Step {metrics['step']}/{metrics.get('total_steps', '?')}: training loss={loss:.4g}"
    data = event.data
    error = data.get("error")
    kind, _, what = event.type.partition(".")
    subject = f"Stage {event.stage}" if event.stage else "Fine-tuning job"
    words = f"{subject} {what.replace('_', ' ')}" if kind != "version" else f"Version {what}"
    if isinstance(error, dict):
        return f"{words}: {error.get('message', error.get('code', 'unknown error'))}"
    told = data.get("message")
    if told and event.type == "stage.log":
        return str(told)
    return f"{words}: {told}" if told else words


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
