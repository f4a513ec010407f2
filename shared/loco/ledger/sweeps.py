"""Sweeps in the ledger: which jobs belong to one, and how far its trainings are.

What a sweep does next follows from what is recorded here and from its jobs (`loco.queue.sweeps`);
each step is one Lua script, so it may be tried by any number of processes.
"""

import json
import secrets
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from loco.contracts.base import Contract
from loco.contracts.errors import (
    ErrorBody,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    UnreadableRecord,
)
from loco.contracts.jobs import Failure, JobStatus
from loco.contracts.program_events import Progress
from loco.contracts.results import ValidationLoss
from loco.contracts.specs import JobSpec, TrainSpec
from loco.contracts.stages import Stage
from loco.contracts.sweeps import (
    EpochLoss,
    PointStatus,
    RankBy,
    Sweep,
    SweepPoint,
    SweepRequest,
    SweepSummary,
)
from loco.ledger.connection import Connection
from loco.ledger.scripts import Scripts
from loco.ledger.views import Fields, legible, moment, readable

#: The job that prepares, and the one that goes on with the best. A point's slot is its number.
PREPARE, FINAL = "prepare", "final"
_BATCH = 100
#: Open sweeps of an owner: every reaper looks at each every few seconds.
_MOST_OPEN = 50
#: What `_summary` reads. Not the points: a list may show a hundred sweeps.
_HEAD = (
    *("id", "adapter", "profile", "owner", "status", "cancel_requested", "priority", "metadata"),
    *("rank_by", "export_best", "early_stop", "size", "created_at", "finished_at", "best", "error"),
    *(f"job:{PREPARE}", f"job:{FINAL}"),
)


class Outcome(Contract):
    """What a training that succeeded measured, kept so that its result is read once."""

    validation_loss: float | None
    lowest_validation_loss: float | None
    train_loss: float
    total_steps: int
    validations: tuple[EpochLoss, ...]


class _Trained(Contract):
    """The part of a `TrainResult` that a sweep looks at, whichever release wrote it."""

    validation_loss: float | None = None
    last_loss: float
    total_steps: int
    validations: tuple[ValidationLoss, ...] = ()


class _Prepared(Contract):
    """The part of a `PrepareResult` that a sweep looks at, whichever release wrote it."""

    validation: int | None = None


class SweepPlan(NamedTuple):
    """What the jobs of a sweep are made of."""

    #: All stages (without sets of problems no eval), with the train spec of the first point.
    spec: JobSpec
    #: The train spec of each point.
    trains: tuple[TrainSpec, ...]


class SweepsPage(NamedTuple):
    """Some sweeps, newest first."""

    sweeps: list[SweepSummary]
    #: Whether more follow.
    more: bool


class Sweeps:
    """The sweeps of one Redis namespace. Every method raises `RedisUnavailable`."""

    def __init__(self, connection: Connection, scripts: Scripts, *, namespace: str) -> None:
        self._connection = connection
        self._run = scripts.run
        self._namespace = namespace

    # Reading

    def open(self) -> list[str]:
        """IDs of the sweeps that have not ended, oldest first."""
        with self._connection.client() as client:
            return [str(i) for i in client.zrange(self._key("sweeps", "open"), 0, -1)]

    def sweep(self, sweep_id: str) -> Sweep:
        """A sweep and its points, ranks apart.

        Raises:
            NotFound: no such sweep.
            UnreadableRecord: there is one, but it cannot be read.
        """
        with self._connection.client() as client:
            fields = client.hgetall(self._key("sweep", sweep_id))
        if not fields:
            raise _unknown(sweep_id, NotFound)
        with readable("sweep", sweep_id):
            overrides: list[dict[str, Any]] = json.loads(fields["points"])
            numbers = range(1, len(overrides) + 1)
            unread = [n for n in numbers if f"outcome:{n}" not in fields]
            jobs = [fields.get(f"job:{slot}") for slot in (PREPARE, FINAL, *unread)]
            prepare, final, *rest = self._states(jobs)
            states = dict(zip(unread, rest, strict=True))
            summary = _summary(fields, final.status)
            points = [
                _point(n, overrides[n - 1], fields, states.get(n), over=summary.is_terminal)
                for n in numbers
            ]
            return Sweep(
                **summary.model_dump(exclude={"is_terminal"}),
                prepare_status=prepare.status,
                final_status=final.status,
                points=tuple(
                    self._with_outcome(sweep_id, point)
                    if point.status is PointStatus.SUCCEEDED and point.number in states
                    else point
                    for point in points
                ),
            )

    def page(self, *, after: str | None = None, limit: int = 20) -> SweepsPage:
        """Some sweeps, newest first; a record that cannot be read is left out.

        Args:
            after: ID of the last sweep of the page before.
            limit: sweeps on a page.

        Raises:
            InvalidRequest: `after` is not a sweep.
        """
        index = self._key("sweeps")
        with self._connection.client() as client:
            below = "+inf"
            if after is not None:
                seq = client.zscore(index, after)
                if seq is None:
                    raise _unknown(after, InvalidRequest)
                below = f"({seq!r}"
            ids = client.zrevrangebyscore(index, below, "-inf", start=0, num=limit + 1)
            pipeline = client.pipeline(transaction=False)
            for sweep_id in ids[:limit]:
                pipeline.hmget(self._key("sweep", sweep_id), _HEAD)
            records = pipeline.execute(raise_on_error=False)
        hashes = [
            {name: value for name, value in zip(_HEAD, values, strict=True) if value is not None}
            if isinstance(values, list)
            else {}
            for values in records
        ]
        finals = self._states([fields.get(f"job:{FINAL}") for fields in hashes])
        entries = zip(ids, zip(hashes, finals, strict=True), strict=False)
        found = legible("sweep", entries, lambda _, both: _summary(both[0], both[1].status))
        return SweepsPage(found, len(ids) > limit)

    def plan(self, sweep_id: str) -> SweepPlan:
        """What the sweep's jobs are made of."""
        with self._connection.client() as client:
            fields = client.hgetall(self._key("sweep-plan", sweep_id))
        with readable("sweep", sweep_id):
            return SweepPlan(
                spec=JobSpec.model_validate(json.loads(fields["spec"]), extra="ignore"),
                trains=tuple(
                    TrainSpec.model_validate(train, extra="ignore")
                    for train in json.loads(fields["trains"])
                ),
            )

    def accepted(self, idempotency_key: str, digest: str) -> str | None:
        """The sweep this key was accepted for, if any.

        Raises:
            IdempotencyConflict: the key came with another digest.
        """
        with self._connection.client() as client:
            known = client.hgetall(self._key("idem", idempotency_key))
        if not known:
            return None
        if known["digest"] != digest:
            raise _key_conflict(known["sweep"])
        return str(known["sweep"])

    # Changing

    def submit(
        self,
        plan: SweepPlan,
        request: SweepRequest,
        points: Sequence[dict[str, Any]],
        *,
        owner: str,
        idempotency_key: str,
        seconds: int,
        digest: str,
    ) -> tuple[str, bool]:
        """Records a sweep that has no job yet.

        Args:
            plan: what its jobs are made of.
            request: what was asked for.
            points: the fields that each sets, in order.
            owner: whose sweep it is.
            idempotency_key: the same key and digest give the same sweep for `seconds`.
            seconds: lifetime of the key.
            digest: of what was asked for.

        Returns:
            Its ID, and whether this call created it.

        Raises:
            IdempotencyConflict: the key came with another digest before.
            QuotaExceeded: the owner has as many open sweeps as may be.
        """
        head = {
            "adapter": plan.spec.adapter,
            "profile": plan.spec.profile,
            "owner": owner,
            "priority": str(request.priority),
            "metadata": json.dumps(request.metadata),
            "rank_by": request.rank_by.value,
            "export_best": str(int(request.export_best)),
            "early_stop": str(int(request.early_stop)),
            "points": json.dumps(points),
            "size": str(len(points)),
            "not_before": str(round(request.not_before.timestamp() * 1000))
            if request.not_before
            else "",
        }
        sweep_id, outcome = self._run(
            "sweep_submit",
            idempotency_key,
            seconds * 1000,
            digest,
            uuid.uuid4().hex,
            secrets.randbelow(16**6),
            json.dumps(head),
            json.dumps([train.model_dump(mode="json") for train in plan.trains]),
            plan.spec.model_dump_json(by_alias=True),
            owner,
            _MOST_OPEN,
        )
        if outcome == "conflict":
            raise _key_conflict(sweep_id)
        if outcome == "too many":
            raise QuotaExceeded(
                f"{owner!r:.200} has {_MOST_OPEN} running sweeps. No more are allowed.",
                hint="Wait until one ends, or cancel one: `loco sweeps` lists them.",
            )
        return str(sweep_id), outcome == "created"

    def begin(
        self, sweep_id: str, slot: str, spec: JobSpec, *, best: int | None = None
    ) -> str | None:
        """Makes the job of a slot, once.

        Args:
            sweep_id: the sweep.
            slot: `PREPARE`, a point's number or `FINAL`.
            spec: of the job.
            best: the point that `FINAL` goes on with.

        Returns:
            The job's ID where this call made it, so that its hint is sent; None: it was there, or the
            sweep takes no further step.
        """
        job_id, outcome = self._run(
            "sweep_job",
            sweep_id,
            slot,
            "" if best is None else best,
            secrets.randbelow(16**6),
            ",".join(spec.stages),
            ",".join(stage.queue for stage in spec.stages),
            spec.model_dump_json(by_alias=True),
            spec.from_job or "",
        )
        return str(job_id) if outcome == "created" else None

    def note_stopped(self, sweep_id: str, number: int, reason: str) -> bool:
        """Notes that a point is to be stopped, and why. False: the sweep takes no further step."""
        return int(self._run("sweep_note", sweep_id, f"stopped:{number}", reason)) == 1

    def cancel(self, sweep_id: str) -> None:
        """Has no further step taken; one that has ended stays as it is.

        Raises:
            NotFound: no such sweep.
        """
        if self._run("sweep_cancel", sweep_id) == "missing":
            raise _unknown(sweep_id, NotFound)

    def close(
        self,
        sweep_id: str,
        status: JobStatus,
        *,
        error: ErrorBody | None = None,
        best: int | None = None,
    ) -> None:
        """Ends a sweep that has not ended."""
        self._run(
            "sweep_close",
            sweep_id,
            status,
            error.model_dump_json() if error else "",
            "" if best is None else best,
        )

    def validation_rows(self, job_id: str) -> int | None:
        """The rows that a prepare job kept to measure the loss on; None: its result does not say."""
        with self._connection.client() as client:
            result = client.hget(self._key("task", f"{job_id}-{Stage.PREPARE}"), "result")
        return _Prepared.model_validate_json(result or "{}", extra="ignore").validation

    def _with_outcome(self, sweep_id: str, point: SweepPoint) -> SweepPoint:
        """A point that succeeded with what it measured, which is read once and kept."""
        with self._connection.client() as client:
            result = client.hget(self._key("task", f"{point.job}-{Stage.TRAIN}"), "result")
        trained = _Trained.model_validate_json(result or "", extra="ignore")
        outcome = Outcome(
            validation_loss=trained.validation_loss,
            lowest_validation_loss=min((v.loss for v in trained.validations), default=None),
            train_loss=trained.last_loss,
            total_steps=trained.total_steps,
            validations=tuple(EpochLoss(epoch=v.epoch, loss=v.loss) for v in trained.validations),
        )
        self._run("sweep_note", sweep_id, f"outcome:{point.number}", outcome.model_dump_json())
        return point.model_copy(update=dict(outcome))

    def _states(self, job_ids: Sequence[str | None]) -> "list[_JobState]":
        """Where jobs are, without their specs and results; None: there is none."""
        there = [job_id for job_id in job_ids if job_id is not None]
        answers: list[Any] = []
        with self._connection.client() as client:
            for start in range(0, len(there), _BATCH):
                pipeline = client.pipeline(transaction=False)
                for job_id in there[start : start + _BATCH]:
                    pipeline.hmget(self._key("job", job_id), "status", "error")
                    pipeline.hget(self._key("task", f"{job_id}-{Stage.TRAIN}"), "progress")
                answers += pipeline.execute(raise_on_error=False)
        if faults := [answer for answer in answers if isinstance(answer, Exception)]:
            raise UnreadableRecord(f"A job of a sweep cannot be read: {faults[0]}.")
        pairs = zip(answers[::2], answers[1::2], strict=True)
        found = {
            job_id: _JobState(job[0], job[1], progress)
            for job_id, (job, progress) in zip(there, pairs, strict=True)
        }
        nothing = _JobState(None, None, None)
        return [nothing if job_id is None else found[job_id] for job_id in job_ids]

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


class _JobState(NamedTuple):
    word: str | None
    failure: str | None
    progress: str | None

    @property
    def status(self) -> JobStatus | None:
        return JobStatus(self.word) if self.word else None


def _summary(fields: Fields, final: JobStatus | None) -> SweepSummary:
    """A sweep from its hash. `final` counts once it ended: a final job that is retried goes on.

    Not where the sweep itself was cancelled: that ended for good.
    """
    status = JobStatus(fields["status"])
    asked = status is JobStatus.CANCELLED and fields["cancel_requested"] == "1"
    if final is not None and status.is_terminal and not asked:
        status = final if final.is_terminal else JobStatus.RUNNING
    over = status.is_terminal
    best = fields.get("best")
    return SweepSummary(
        id=fields["id"],
        adapter=fields["adapter"],
        profile=fields["profile"],
        owner=fields["owner"],
        status=status,
        cancel_requested=fields["cancel_requested"] == "1",
        priority=int(fields["priority"]),
        metadata=json.loads(fields["metadata"]),
        rank_by=RankBy(fields["rank_by"]),
        export_best=fields["export_best"] == "1",
        early_stop=fields["early_stop"] == "1",
        size=int(fields["size"]),
        created_at=moment(fields["created_at"]),
        finished_at=moment(fields["finished_at"]) if over and "finished_at" in fields else None,
        prepare_job=fields.get(f"job:{PREPARE}"),
        best=int(best) if best else None,
        final_job=fields.get(f"job:{FINAL}"),
        error=ErrorBody.model_validate_json(fields["error"], extra="ignore")
        if "error" in fields and status is not JobStatus.SUCCEEDED
        else None,
    )


def _point(
    number: int, overrides: dict[str, Any], fields: Fields, state: _JobState | None, *, over: bool
) -> SweepPoint:
    """A point from its sweep's hash and, where its outcome is not noted, its job."""
    job = fields.get(f"job:{number}")
    if state is None:
        outcome = Outcome.model_validate_json(fields[f"outcome:{number}"], extra="ignore")
        return SweepPoint(
            number=number,
            overrides=overrides,
            job=job,
            status=PointStatus.SUCCEEDED,
            **outcome.model_dump(),
        )
    stopped = fields.get(f"stopped:{number}")
    progress = Progress.model_validate_json(state.progress or "{}", extra="ignore")
    status = _status(job, state, stopped=stopped is not None, over=over)
    loss, epoch = progress.validation_loss, progress.validation_epoch
    failure = Failure.model_validate_json(state.failure, extra="ignore") if state.failure else None
    return SweepPoint(
        number=number,
        overrides=overrides,
        job=job,
        status=status,
        percent=None if status is PointStatus.SUCCEEDED else progress.percent,
        validation_loss=loss,
        lowest_validation_loss=progress.lowest_validation_loss,
        train_loss=progress.loss,
        total_steps=progress.total_steps,
        validations=(EpochLoss(epoch=epoch, loss=loss),)
        if loss is not None and epoch is not None
        else (),
        reason=failure.message if failure else stopped,
    )


def _status(job: str | None, state: _JobState, *, stopped: bool, over: bool) -> PointStatus:
    if job is None:
        return PointStatus.CANCELLED if over else PointStatus.PENDING
    if state.word is None:  # somebody deleted it
        return PointStatus.FAILED
    if state.word == JobStatus.CANCELLED and stopped:
        return PointStatus.STOPPED
    return PointStatus(state.word)


def _unknown(sweep_id: str, error: type[NotFound | InvalidRequest]) -> NotFound | InvalidRequest:
    return error(
        f"No sweep {sweep_id!r:.100}.",
        param="sweep_id" if error is NotFound else "after",
        hint="`loco sweeps` lists them.",
    )


def _key_conflict(sweep_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"This Idempotency-Key was already used with another request, for {sweep_id}.",
        param="Idempotency-Key",
        hint="Use a new key for a changed request, or send the old request with the old key.",
    )
