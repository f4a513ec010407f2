"""Where a job that waits stands in line, and when its turn and its end are expected."""

import time
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from loco.contracts.errors import NotFound, UnreadableRecord
from loco.contracts.jobs import Job, StageStatus, Task, Waiting
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.ledger.reader import LedgerReader
from loco.planning.history import History

#: Stages ahead whose times are looked up, each with its job: a look at a job must stay cheap.
_AHEAD = 20
#: Seconds that a ledger's history, a hundred jobs, is kept: whoever follows a job asks again and again.
_KEPT = 5.0

_histories: WeakKeyDictionary[LedgerReader, tuple[float, History]] = WeakKeyDictionary()


def waiting(ledger: LedgerReader, job: Job) -> Waiting | None:
    """Where a job stands in line; None: none of its stages waits for a worker.

    Times are medians of earlier runs of the same adapter, base and size, and of what runs what it says
    itself. A job that comes later with a higher priority, or a worker that ends, makes them wrong.
    """
    task = next((t for t in job.stages if t.status is StageStatus.QUEUED), None)
    if task is None or job.is_terminal:
        return None
    queue = task.stage.queue
    running, ready, delayed = ledger.line(queue)
    if task.task_id not in (*ready, *delayed):
        return None  # a worker has taken it since the job was read
    position = ready.index(task.task_id) + 1 if task.task_id in ready else None
    history = _history(ledger)
    workers = sum(worker.queue == queue for worker in ledger.workers())
    starts = _starts(ledger, history, running, ready[: (position or 1) - 1]) if position else 0.0
    if not workers:
        starts = None
    elif starts is not None:
        starts = max(starts / workers, _wait_left(job) if position is None else 0.0)
    own = [_seconds(history, t.stage, job.spec) for t in job.stages if not t.status.is_terminal]
    return Waiting(
        stage=task.stage,
        queue=queue,
        position=position,
        running=len(running),
        starts_in_seconds=None if starts is None else round(starts, 1),
        ends_in_seconds=_sum([starts, *own]),
    )


def _history(ledger: LedgerReader) -> History:
    read_at, history = _histories.get(ledger, (0.0, None))
    if history is None or time.monotonic() - read_at > _KEPT:
        history = History.of(ledger)
        _histories[ledger] = time.monotonic(), history
    return history


def _starts(
    ledger: LedgerReader, history: History, running: list[str], ahead: list[str]
) -> float | None:
    """Seconds that one worker needs for what runs and what is ahead."""
    if len(ahead) > _AHEAD:
        return None
    seconds: list[float | None] = []
    specs: dict[str, JobSpec] = {}
    try:
        for task in ledger.tasks([*running, *ahead]):
            if task.job_id not in specs:
                specs[task.job_id] = ledger.job(task.job_id).spec
            seconds.append(_left(history, task, specs[task.job_id]))
    except (
        NotFound,
        UnreadableRecord,
    ):  # deleted meanwhile, or foreign: how long it takes is not known
        return None
    return _sum(seconds)


def _left(history: History, task: Task, spec: JobSpec) -> float | None:
    """Seconds until a stage that runs or waits has ended."""
    told = task.progress.eta_seconds if task.progress else None
    if task.status is StageStatus.RUNNING and told is not None:
        return told
    usual = _seconds(history, task.stage, spec)
    if usual is None or task.started_at is None or task.status is not StageStatus.RUNNING:
        return usual
    return max(usual - (datetime.now(UTC) - task.started_at).total_seconds(), 0.0)


def _wait_left(job: Job) -> float:
    if job.not_before is None:
        return 0.0
    return max((job.not_before - datetime.now(UTC)).total_seconds(), 0.0)


def _seconds(history: History, stage: Stage, spec: JobSpec) -> float | None:
    seconds, runs = history.seconds(stage, spec, device=None)
    return seconds if runs else None


def _sum(parts: list[float | None]) -> float | None:
    """The sum; None: a part is not known."""
    known = [part for part in parts if part is not None]
    return round(sum(known), 1) if len(known) == len(parts) else None
