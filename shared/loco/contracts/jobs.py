"""Jobs and stages as the ledger keeps them and the API shows them."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, computed_field

from loco.contracts.artifacts import Artifact
from loco.contracts.base import Contract
from loco.contracts.paths import JobId, RelativePath
from loco.contracts.plans import Device
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec, Name
from loco.contracts.stages import Queue, Stage
from loco.contracts.versions import Promotion


class JobStatus(StrEnum):
    """The status of a job."""

    #: Accepted; no stage has started.
    QUEUED = "queued"
    #: A stage has started.
    RUNNING = "running"
    #: Every stage committed.
    SUCCEEDED = "succeeded"
    #: A stage failed for good; `retry` goes on from it.
    FAILED = "failed"
    #: Stopped on request.
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class StageStatus(StrEnum):
    """The status of a stage."""

    #: An earlier stage has not committed yet.
    PENDING = "pending"
    #: Waits for a worker.
    QUEUED = "queued"
    #: A worker holds its lease.
    RUNNING = "running"
    #: Committed.
    SUCCEEDED = "succeeded"
    #: Committed by pointing at an earlier run with the same inputs.
    REUSED = "reused"
    #: Failed for good.
    FAILED = "failed"
    #: Stopped on request.
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the stage has ended."""
        return self not in (StageStatus.PENDING, StageStatus.QUEUED, StageStatus.RUNNING)

    @property
    def is_committed(self) -> bool:
        """Whether its result and artifacts stand."""
        return self in (StageStatus.SUCCEEDED, StageStatus.REUSED)


class Failure(Contract):
    """Why a stage failed."""

    code: str = Field(description="Stable code for programs.")
    message: str = Field(description="What went wrong.")
    hint: str | None = Field(None, description="What to do about it.")
    stage: Stage = Field(description="The stage that failed.")
    attempt: int = Field(description="The attempt that failed, from 1.")
    user_fault: bool = Field(description="Whether a changed request or setting fixes it.")


class Checkpoint(Contract):
    """A checkpoint a later attempt can resume from."""

    path: RelativePath = Field(description="Folder relative to the adapters folder.")
    step: int = Field(description="Optimizer steps it holds.")


class Task(Contract):
    """One stage of one job. Its ID is stable over attempts."""

    task_id: str = Field(description="`JOB_ID-STAGE`.")
    job_id: JobId = Field(description="The job it belongs to.")
    stage: Stage = Field(description="The stage it runs.")
    status: StageStatus = Field(description="Current status.")
    attempt: int = Field(0, description="Attempts so far.")
    crashes: int = Field(0, description="Attempts that crashed since the last progress.")
    worker: str | None = Field(None, description="Worker of the running or last attempt.")
    progress: Progress | None = Field(None, description="The newest progress reading.")
    result: dict[str, Any] | None = Field(
        None, description="What the stage measured, once it has finished."
    )
    error: Failure | None = Field(None, description="Why the last attempt failed.")
    artifacts: tuple[Artifact, ...] = Field((), description="The files it made.")
    checkpoints: tuple[Checkpoint, ...] = Field((), description="Newest first.")
    reused_from: str | None = Field(None, description="Job whose finished stage was reused.")
    queued_at: datetime | None = Field(None, description="When it started to wait for a worker.")
    started_at: datetime | None = Field(None, description="When its last attempt started.")
    ran_seconds: float | None = Field(
        None, description="Total run time of its ended attempts, without waiting."
    )
    finished_at: datetime | None = Field(None, description="When it ended.")

    @property
    def took_seconds(self) -> float | None:
        """How long its attempts ran; None: it was reused, or none has ended."""
        if self.status is StageStatus.REUSED or self.finished_at is None:
            return None
        if self.ran_seconds is None and self.started_at is not None:  # of an earlier release
            return (self.finished_at - self.started_at).total_seconds()
        return self.ran_seconds


class Waiting(Contract):
    """Where a waiting job is in line."""

    stage: Stage = Field(description="The stage that waits.")
    queue: Queue = Field(description="The queue it waits in.")
    position: int | None = Field(
        description="Its place in line, from 1. Null: it waits for a time (`not_before`, or the "
        "pause before a retry)."
    )
    running: int = Field(description="Number of stages running in this queue now.")
    starts_in_seconds: float | None = Field(
        description="When it will probably start. Null: not known, because no earlier run tells "
        "how long the jobs before it take, or because no worker serves the queue."
    )
    ends_in_seconds: float | None = Field(
        description="When the job will probably end, if no other job gets in before its later "
        "stages. Null: not known."
    )


class Job(Contract):
    """One run of an adapter's stages."""

    id: JobId = Field(description="Time of acceptance and a random part; also the model's tag.")
    object: str = Field("job", description="Always `job`.")
    adapter: Name = Field(description="The adapter that is built.")
    profile: str = Field(description="The profile of its recipe.")
    owner: str | None = Field(
        None,
        description="Owner of the API key that submitted it. `local`: no key was needed. Null: "
        "accepted by a release that kept no owners.",
    )
    status: JobStatus = Field(description="Current status.")
    priority: int = Field(0, description="Higher runs first.")
    metadata: dict[str, str] = Field(
        {}, description="Labels of your own, which the server only stores."
    )
    cancel_requested: bool = Field(False, description="Whether somebody asked to cancel it.")
    paused: bool = Field(
        False,
        description="Whether it was paused and can be resumed: OpenAI's clients see it as `paused`.",
    )
    created_at: datetime = Field(description="When it was accepted.")
    not_before: datetime | None = Field(
        None, description="The first stage does not start before this time. Null: no such time."
    )
    started_at: datetime | None = Field(None, description="When its first stage started.")
    finished_at: datetime | None = Field(None, description="When it ended.")
    stages: tuple[Task, ...] = Field(description="Its tasks, in the order in which they run.")
    error: Failure | None = Field(None, description="Why it failed.")
    promotion: Promotion | None = Field(
        None, description="Whether its version was promoted. Null before register."
    )
    waiting: Waiting | None = Field(
        None, description="Its place in line. Null: it is not waiting. Lists do not have it."
    )
    spec: JobSpec = Field(description="What the job does, with all defaults filled in.")

    @computed_field(description="Whether the job has ended.")  # type: ignore[prop-decorator]
    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status.is_terminal

    @property
    def took_seconds(self) -> float:
        """How long its stages ran, without what it waited; a reused stage took nothing."""
        return sum(task.took_seconds or 0 for task in self.stages)

    def stage(self, stage: Stage) -> Task | None:
        """The job's task for a stage, or None when the stage is not part of the job."""
        return next((t for t in self.stages if t.stage is stage), None)


class JobLine(Contract):
    """A job in one line: enough to tell it from others."""

    id: JobId = Field(description="Its ID.")
    adapter: str = Field(description="The adapter that is built.")
    profile: str = Field(description="The profile of its recipe.")
    owner: str | None = Field(None, description="Owner, as in a job.")
    status: JobStatus = Field(description="Current status.")


class UnreadableJob(Contract):
    """A job whose record cannot be read. It takes the job's place in a list."""

    id: str = Field(description="ID of the job.")
    code: Literal["unreadable_record"] = Field("unreadable_record", description="Always this.")
    message: str = Field(description="What cannot be read, and why.")


class JobEvent(Contract):
    """One entry of a job's event stream."""

    id: str = Field(description="Stream ID; `Last-Event-ID` continues after it.")
    type: str = Field(
        description="`job.submitted`, `job.STATUS`, `stage.STATUS`, `stage.progress`, "
        "`stage.checkpoint`, `stage.log`, `stage.retry`, `version.registered`, "
        "`version.promoted`, `version.not_promoted`, `version.refused`, `version.measured`, `snapshot`."
    )
    at: datetime = Field(description="When it happened.")
    stage: Stage | None = Field(None, description="The stage it is about, if any.")
    data: dict[str, Any] = Field(
        {}, description="Details: a progress reading or a failure. For `snapshot`: the job."
    )


class WorkerInfo(Contract):
    """A worker that gave a sign of life in the last minute."""

    id: str = Field(description="Its name.")
    queue: str = Field(description="The queue it takes stages from: `cpu` or `gpu`.")
    host: str = Field(description="The machine it runs on.")
    pid: int = Field(description="Its process there.")
    device: str = Field(description="`cpu`, or the GPU it is pinned to.")
    hardware: Device | None = Field(
        None,
        description="What a `gpu` worker trains on, as seen when it was last idle.",
    )
    task_id: str | None = Field(None, description="The stage it runs now.")
    seen_at: datetime = Field(description="When its last sign of life came.")
