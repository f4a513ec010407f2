"""Sweeps: one prepare, a training for each point, and one job that goes on with the best.

A sweep has no process of its own. Its next step follows from what the ledger says of it and of its
jobs, and every reaper takes it (`advance`): each step is one script that happens once, whoever comes
first, so any number may try and any of them may die in between.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery

from loco.contracts.errors import Conflict, ErrorBody, InvalidRequest, RedisUnavailable
from loco.contracts.jobs import JobStatus
from loco.contracts.keys import LOCAL
from loco.contracts.specs import JobSpec, TrainSpec
from loco.contracts.stages import Stage
from loco.contracts.sweeps import PointStatus, RankBy, Sweep, SweepPoint, SweepRequest
from loco.grading.sweeps import best, hopeless, ranked
from loco.ledger.ledger import Hint, Ledger
from loco.ledger.sweeps import FINAL, PREPARE, SweepPlan
from loco.queue.celery_app import send_hint
from loco.queue.grid import job_request, points_of, trains_of
from loco.queue.submission import (
    Reader,
    check_key,
    check_size_of,
    checked_time,
    frozen_spec,
    request_digest,
)
from loco.recipes.data_files import named_files
from loco.recipes.frozen import held
from loco.recipes.resolve import RECIPE
from loco.settings import Settings

#: What follows the choice. Its train is the best one's, taken over: so the adapter's files are of one job.
_FINAL_STAGES = (Stage.TRAIN, Stage.EXPORT, Stage.REGISTER, Stage.EVAL)
#: A repeated request is the same sweep for 7 days, as with jobs; a lost reply's repeat for 10 minutes.
_KEY_SECONDS = 7 * 24 * 3600
#: JSON of what all points set, as it was asked for; a reaper reads it with every look at an open sweep.
_LARGEST_POINTS = 64 * 1024

logger = logging.getLogger(__name__)

#: Sweeps whose fault this process has told of.
_told: set[str] = set()


def submit_sweep(
    ledger: Ledger,
    app: Celery,
    settings: Settings,
    request: SweepRequest,
    *,
    idempotency_key: str,
    owner: str = LOCAL,
    sees_all: bool = True,
) -> tuple[Sweep, bool]:
    """Accepts a sweep; every point is resolved, and what it reads is frozen, before the answer.

    Args:
        ledger: where it is recorded.
        app: sends the hints.
        settings: adapters and dataset folders.
        request: what is asked for.
        idempotency_key: the same key and request give the same sweep again.
        owner: whose sweep it is; each has idempotency keys of its own.
        sees_all: whether it may read everybody's data sets, not the owner's alone.

    Returns:
        The sweep, and whether this call created it.

    Raises:
        UnknownAdapter, UnknownProfile, UnknownBaseModel, InvalidRequest: see `recipes.resolve`, `queue.grid`.
        DataError, DiskFull, Conflict: as for a job.
        IdempotencyConflict: the key was used with another request.
        QuotaExceeded: the owner has as many open sweeps as may be.
    """
    check_key(idempotency_key)
    key, digest = f"sweep:{json.dumps([owner, idempotency_key])}", request_digest(request)
    if known := ledger.sweeps.accepted(key, digest):
        return show_sweep(ledger, known), False
    # what is frozen stays: the prepare job, made here, holds all of it
    with held(settings.adapters_dir):
        plan, points = _planned(ledger, settings, request, Reader(owner, sees_all))
        sweep_id, created = ledger.sweeps.submit(
            plan,
            request,
            points,
            owner=owner,
            idempotency_key=key,
            seconds=_KEY_SECONDS,
            digest=digest,
        )
        for hint in advance(ledger, sweep_id):
            send_hint(app, hint)
    return show_sweep(ledger, sweep_id), created


def _planned(
    ledger: Ledger, settings: Settings, request: SweepRequest, reader: Reader
) -> tuple[SweepPlan, list[dict[str, Any]]]:
    """What a sweep's jobs are made of, and the fields that each point sets."""
    checked_time(request.not_before)
    points = points_of(settings.adapters_dir, request)
    _check_size(request, points)
    trains = trains_of(settings.adapters_dir, request, points)
    spec = frozen_spec(ledger, settings, job_request(request, points[0]), reader)
    if spec.train != trains[0]:
        raise Conflict(
            f"{request.adapter}/{RECIPE} is changing right now.",
            hint="Submit the sweep when nothing writes to the recipe.",
        )
    _check_ranking(request, spec)
    for train in trains:
        check_size_of(spec.model_copy(update={"train": train}))
    return SweepPlan(spec=spec, trains=trains), points


def _check_size(request: SweepRequest, points: Sequence[dict[str, Any]]) -> None:
    size = 0
    for number, point in enumerate(points, start=1):
        size += len(json.dumps(point))
        if size > _LARGEST_POINTS:
            sizes = {field: len(json.dumps(values)) for field, values in request.grid.items()}
            raise InvalidRequest(
                f"The first {number} of {len(points)} points have {size:,} characters as JSON. "
                f"{_LARGEST_POINTS:,} are allowed for all.",
                param=max(sizes, key=lambda field: sizes[field]),
                hint="Write its values shorter, or leave some out.",
            )


def show_sweep(ledger: Ledger, sweep_id: str) -> Sweep:
    """A sweep with its points and their ranks.

    Raises:
        NotFound: no such sweep.
        UnreadableRecord: there is one, but it cannot be read.
    """
    sweep = ledger.sweeps.sweep(sweep_id)
    return sweep.model_copy(update={"points": ranked(sweep.points, sweep.rank_by)})


def cancel_sweep(ledger: Ledger, sweep_id: str) -> Sweep:
    """Cancels a sweep: no further step, and all its jobs are cancelled. An ended one stays as it is.

    Raises:
        NotFound: no such sweep.
    """
    ledger.sweeps.cancel(sweep_id)
    advance(ledger, sweep_id)
    sweep = show_sweep(ledger, sweep_id)
    if sweep.final_job is not None and not (sweep.is_terminal or sweep.cancel_requested):
        ledger.cancel(sweep.final_job)  # it was retried after the sweep had ended
        return show_sweep(ledger, sweep_id)
    return sweep


def advance_all(ledger: Ledger) -> Iterator[Hint]:
    """Takes the next step of every open sweep, one that fails not in the way of the others.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    for sweep_id in ledger.sweeps.open():
        try:
            yield from advance(ledger, sweep_id)
        except RedisUnavailable:
            raise
        except Exception:  # a record that cannot be read, say: it costs its own sweep only
            if sweep_id not in _told:
                _told.add(sweep_id)
                logger.exception("%s cannot continue", sweep_id)


def advance(ledger: Ledger, sweep_id: str) -> list[Hint]:
    """Takes the next step of a sweep, if it has one.

    Returns:
        Hints to send: the jobs that this call made.
    """
    sweep = ledger.sweeps.sweep(sweep_id)
    if sweep.status.is_terminal:
        ledger.sweeps.close(sweep_id, sweep.status)  # ended, and still among the open ones
    elif sweep.cancel_requested:
        _wind_down(ledger, sweep)
    elif sweep.prepare_job is None:
        spec = _part(ledger.sweeps.plan(sweep_id).spec, sweep_id, (Stage.PREPARE,))
        return _begin(ledger, sweep_id, PREPARE, spec)
    elif sweep.final_job is not None:
        if _is_over(sweep.final_status):
            _close_final(ledger, sweep)
    elif sweep.prepare_status is JobStatus.SUCCEEDED:
        return _train(ledger, sweep)
    elif _is_over(sweep.prepare_status):
        _close_unprepared(ledger, sweep)
    return []


def _is_over(status: JobStatus | None) -> bool:
    """Whether a job that was made has ended; None: somebody deleted it."""
    return status is None or status.is_terminal


def _train(ledger: Ledger, sweep: Sweep) -> list[Hint]:
    """Makes the jobs of the points that have none; once all have one, looks at what they measure."""
    if all(point.job is not None for point in sweep.points):
        return _judge(ledger, sweep)
    by_validation = sweep.rank_by is RankBy.VALIDATION_LOSS
    if by_validation and sweep.prepare_job and all(point.job is None for point in sweep.points):
        rows = ledger.sweeps.validation_rows(sweep.prepare_job)
        if rows == 0:
            ledger.sweeps.close(sweep.id, JobStatus.FAILED, error=_nothing_to_rank_by(sweep))
            return []
    plan = ledger.sweeps.plan(sweep.id)
    hints: list[Hint] = []
    for point in sweep.points:
        if point.job is None:
            train = plan.trains[point.number - 1]
            spec = _part(plan.spec, sweep.id, (Stage.TRAIN,), train=train, on=sweep.prepare_job)
            hints += _begin(ledger, sweep.id, str(point.number), spec)
    return hints


def _judge(ledger: Ledger, sweep: Sweep) -> list[Hint]:
    """Stops hopeless trainings; goes on with the best once all have ended."""
    points = sweep.points
    if not all(point.status.is_terminal for point in points):
        if sweep.early_stop and sweep.rank_by is RankBy.VALIDATION_LOSS:
            _stop_hopeless(ledger, sweep.id, points)
        return []
    chosen = best(points, sweep.rank_by)
    if chosen is None:
        ledger.sweeps.close(sweep.id, JobStatus.FAILED, error=_nothing_to_choose(points))
        return []
    if not sweep.export_best:
        ledger.sweeps.close(sweep.id, JobStatus.SUCCEEDED, best=chosen.number)
        return []
    plan = ledger.sweeps.plan(sweep.id)
    train = plan.trains[chosen.number - 1]
    stages = tuple(stage for stage in _FINAL_STAGES if stage in plan.spec.stages)
    spec = _part(plan.spec, sweep.id, stages, train=train, on=sweep.prepare_job)
    # whatever was asked of the trainings: this one must not train again
    spec = spec.model_copy(update={"reuse": True})
    return _begin(ledger, sweep.id, FINAL, spec, best=chosen.number)


def _stop_hopeless(ledger: Ledger, sweep_id: str, points: Sequence[SweepPoint]) -> None:
    trains = None
    for point in points:
        if point.status is not PointStatus.RUNNING or point.job is None:
            continue
        reason = point.reason
        if reason is None:
            trains = trains or ledger.sweeps.plan(sweep_id).trains
            own = _comparable(trains[point.number - 1])
            alike = [o for o in points if _comparable(trains[o.number - 1]) == own]
            reason = hopeless(point, alike)
            if reason is None or not ledger.sweeps.note_stopped(sweep_id, point.number, reason):
                continue
            logger.info("%s: point %d: %s", sweep_id, point.number, reason)
        ledger.cancel(point.job)  # again where an earlier process noted it and died


def _comparable(train: TrainSpec) -> tuple[object, ...]:
    """Equal for trainings whose validation losses compare after as many passes.

    A longer one has a higher learning rate left at that moment, and rows cut elsewhere or a base held
    otherwise have another loss.
    """
    return (
        train.epochs,
        train.max_steps,
        train.scheduler,
        train.max_length,
        train.load_in_4bit,
    )


def _close_final(ledger: Ledger, sweep: Sweep) -> None:
    status = sweep.final_status or JobStatus.FAILED
    error = None
    if status is not JobStatus.SUCCEEDED:
        error = ErrorBody(
            code="final_job_ended",
            message=f"The best is point {sweep.best}, but its job {sweep.final_job} is "
            f"{sweep.final_status or 'gone'}.",
            hint=f"`loco job {sweep.final_job}` says why. `loco retry {sweep.final_job}` "
            "continues it.",
        )
    ledger.sweeps.close(sweep.id, status, error=error)


def _close_unprepared(ledger: Ledger, sweep: Sweep) -> None:
    status = sweep.prepare_status or JobStatus.FAILED
    error = ErrorBody(
        code="prepare_ended",
        message=f"Job {sweep.prepare_job}, which prepares the rows, is {sweep.prepare_status or 'gone'}.",
        hint=f"`loco job {sweep.prepare_job}` says why. Submit the sweep again once that is fixed.",
    )
    ledger.sweeps.close(sweep.id, status, error=error)


def _nothing_to_rank_by(sweep: Sweep) -> ErrorBody:
    return ErrorBody(
        code="no_validation_loss",
        message=f"Job {sweep.prepare_job} found no rows for the validation loss: the source had "
        "none left. Nothing was trained.",
        hint="Lower prepare.examples, or rank by train_loss.",
    )


def _nothing_to_choose(points: Sequence[SweepPoint]) -> ErrorBody:
    if any(point.status is PointStatus.SUCCEEDED for point in points):
        return ErrorBody(
            code="no_validation_loss",
            message="No training measured a validation loss: the source had no rows left, or "
            "they did not fit in memory.",
            hint="Lower prepare.examples, or rank by train_loss. Ended trainings are reused.",
        )
    first = next((point for point in points if point.status is PointStatus.FAILED), points[0])
    return ErrorBody(
        code="all_points_failed",
        message=f"None of the {len(points)} trainings succeeded. Point {first.number}: "
        f"{first.reason or first.status}",
        hint=f"`loco job {first.job}` says more.",
    )


def _wind_down(ledger: Ledger, sweep: Sweep) -> None:
    """Cancels every job of a sweep; ends it when all of them have ended."""
    if sweep.final_status is JobStatus.SUCCEEDED:  # the cancel came too late
        _close_final(ledger, sweep)
        return
    over = True
    jobs = {
        sweep.prepare_job: sweep.prepare_status,
        sweep.final_job: sweep.final_status,
    }
    for job_id, status in jobs.items():
        if job_id is not None and status is not None and not status.is_terminal:
            over &= ledger.cancel(job_id).is_terminal
    for point in sweep.points:
        if point.job is not None and not point.status.is_terminal:
            over &= ledger.cancel(point.job).is_terminal
    if over:
        ledger.sweeps.close(sweep.id, JobStatus.CANCELLED)


def _begin(
    ledger: Ledger, sweep_id: str, slot: str, spec: JobSpec, *, best: int | None = None
) -> list[Hint]:
    job_id = ledger.sweeps.begin(sweep_id, slot, spec, best=best)
    return [Hint(job_id=job_id, stage=spec.stages[0])] if job_id else []


def _part(
    spec: JobSpec,
    sweep_id: str,
    stages: tuple[Stage, ...],
    *,
    train: TrainSpec | None = None,
    on: str | None = None,
) -> JobSpec:
    """The spec of one of a sweep's jobs, with the frozen files that its stages read.

    Prepare's has those of all: while a job has them, no deleted one takes them with it.
    """
    changes = {"stages": stages, "sweep": sweep_id, "train": train or spec.train, "from_job": on}
    part = spec.model_copy(update=changes)
    if stages == (Stage.PREPARE,):
        return part
    named = {path for stage in stages for path in named_files(part.part(stage)).values()}
    inputs = {name: file for name, file in spec.inputs.items() if name in named | {RECIPE}}
    return part.model_copy(update={"inputs": inputs})


def _check_ranking(request: SweepRequest, spec: JobSpec) -> None:
    if request.rank_by is RankBy.VALIDATION_LOSS and not spec.prepare.validation:
        raise InvalidRequest(
            "rank_by validation_loss needs validation rows, but prepare.validation is 0.",
            param="prepare.validation",
            hint="Set prepare.validation (32 is the default), or rank by train_loss.",
        )
