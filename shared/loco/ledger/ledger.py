"""The ledger: the truth about jobs, in Redis.

Every transition is one Lua script (loco/lua/*.lua) on the server's clock; nothing else writes job
state. Celery messages are only hints that there may be work. An attempt is known by its fencing
token: whoever comes with an older one is told so and changes nothing.
"""

import json
import logging
import secrets
import uuid
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from loco.contracts.artifacts import Artifact
from loco.contracts.base import Contract
from loco.contracts.errors import Conflict, IdempotencyConflict, UnreadableRecord
from loco.contracts.jobs import Checkpoint, Failure, Job, WorkerInfo
from loco.contracts.keys import LOCAL
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.ledger.reader import LedgerReader
from loco.ledger.registry import change_of

logger = logging.getLogger(__name__)

__all__ = ["Claim", "CommitAnswer", "Hint", "Ledger", "Renewal"]

#: Seconds a submit may be repeated with its idempotency key (7 days), and without one (a repeat
#: by the connection after a lost reply).
_IDEMPOTENCY_SECONDS = 7 * 24 * 3600
_REPEAT_SECONDS = 600
#: Seconds a claim can be repeated by its nonce.
_NONCE_SECONDS = 3600
#: Longest pause before a retry, seconds.
_LONGEST_BACKOFF = 600
#: A worker not heard of for so long (seconds) is no longer listed.
_WORKER_SECONDS = 60
#: A drain is asked of a process that ends soon; the mark outlives it by far (seconds).
_DRAIN_SECONDS = 24 * 3600
_PROBE_SECONDS = 60


class Renewal(StrEnum):
    """What a worker hears when it renews its lease."""

    #: Go on.
    OK = "ok"
    #: The job was cancelled: stop the program, then `Ledger.cancelled`.
    CANCEL = "cancel"
    #: The worker shall end: stop the program, then `Ledger.release`.
    DRAIN = "drain"
    #: Somebody else has the stage: stop the program and write nothing.
    LOST = "lost"


class CommitAnswer(StrEnum):
    """What became of a commit."""

    #: Stands; the next stage is queued and wants a hint.
    NEXT = "next"
    #: Stands; the job has ended.
    DONE = "done"
    #: This attempt had committed before.
    ALREADY = "already"
    #: The job whose stage it would take over was deleted; nothing was written.
    GONE = "gone"
    #: A newer attempt has the stage, or the job was ended; nothing was written.
    STALE = "stale"


class Claim(Contract):
    """The right to run one attempt of a stage, until the lease runs out."""

    task_id: str
    job_id: str
    stage: Stage
    token: int
    attempt: int
    job: Job


class Hint(Contract):
    """A stage that may be ready."""

    job_id: str
    stage: Stage

    @property
    def queue(self) -> Queue:
        """The queue the hint travels on."""
        return self.stage.queue


def broker_prefix(namespace: str) -> str:
    """Prefix of every key of Celery's broker."""
    return f"{namespace}:celery:"


class Ledger(LedgerReader):
    """Jobs, stages, leases and events in one Redis namespace. Safe to share between threads.

    Every method raises `RedisUnavailable` when the server does not answer or takes no writes.
    """

    # Jobs

    def submit(
        self,
        spec: JobSpec,
        *,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        request_digest: str = "",
        owner: str = LOCAL,
        not_before: datetime | None = None,
    ) -> tuple[Job, bool]:
        """Accepts a job and queues its first stage.

        Args:
            spec: what to do, resolved.
            priority: higher runs first, -100 to 100.
            metadata: kept with the job, not interpreted.
            idempotency_key: the same key of the same owner gives the same job for 7 days.
            request_digest: tells a repeated request from another one under the same key.
            owner: whose job it is.
            not_before: when its first stage may be claimed; none, or past: at once.

        Returns:
            The job, and whether this call created it.

        Raises:
            IdempotencyConflict: the key came with another digest before.
        """
        nonce = uuid.uuid4().hex
        key = _idempotency(idempotency_key, owner) if idempotency_key else f"call:{nonce}"
        lifetime = _IDEMPOTENCY_SECONDS if idempotency_key else _REPEAT_SECONDS
        job_id, outcome = self._run(
            "submit",
            key,
            lifetime * 1000,
            request_digest,
            nonce,
            secrets.randbelow(16**6),
            spec.adapter,
            spec.profile,
            ",".join(spec.stages),
            ",".join(stage.queue for stage in spec.stages),
            priority,
            json.dumps(dict(metadata or {})),
            spec.model_dump_json(by_alias=True),
            owner,
            round(not_before.timestamp() * 1000) if not_before else "",
            *(job for job in (spec.from_job, spec.replay_of) if job),
        )
        if outcome == "conflict":
            raise _key_conflict(job_id)
        if outcome == "gone":
            raise Conflict(f"Job {job_id}, which this one builds on, was deleted in the meantime.")
        return self.job(job_id), outcome == "created"

    def accepted(
        self, idempotency_key: str, request_digest: str, *, owner: str = LOCAL
    ) -> Job | None:
        """The job this key of an owner was accepted for, if any.

        Raises:
            IdempotencyConflict: the key came with another digest.
        """
        with self._connection.client() as client:
            known = client.hgetall(self._key("idem", _idempotency(idempotency_key, owner)))
            if not known or not client.exists(self._key("job", known["job"])):
                return None
        if known["digest"] != request_digest:
            raise _key_conflict(known["job"])
        return self.job(known["job"])

    def cancel(self, job_id: str, *, pause: bool = False) -> Job:
        """Cancels a job: at once what waits; a running stage hears it at its next renewal.

        A job that has ended is returned unchanged, but that a paused one is paused no more.

        Args:
            job_id: the job.
            pause: mark it as stopped for a while: `Job.paused`, until `retry` or another cancel.

        Raises:
            NotFound: no such job.
        """
        self._run("cancel", job_id, int(pause))
        return self.job(job_id)

    def retry(self, job_id: str) -> Job:
        """Queues a failed or cancelled job again, from its first stage that has not committed.

        Raises:
            NotFound: no such job.
            Conflict: the job has not ended, or succeeded.
        """
        answer = self._run("retry", job_id, uuid.uuid4().hex)
        job = self.job(job_id)
        if answer not in ("ok", "missing"):
            raise Conflict(
                f"Job {job_id} is {answer}. Only failed and cancelled jobs can be retried.",
                param="job_id",
                hint="Submit a new job. It reuses stages whose inputs match.",
            )
        return job

    # Attempts

    def claim(self, queue: Queue, *, worker_id: str, nonce: str) -> Claim | None:
        """Takes the best ready stage of a queue: highest priority, then the oldest job.

        Args:
            queue: whose stages to look at.
            worker_id: who runs it.
            nonce: new for every claim; a repeat with it gives the same attempt while that runs.
        """
        lease = round(self._timings.lease * 1000)
        answer = self._run("claim", queue, worker_id, nonce, lease, _NONCE_SECONDS * 1000)
        if answer is None:
            return None
        task_id, job_id, stage, token, attempt = answer
        try:
            return Claim(
                task_id=task_id,
                job_id=job_id,
                stage=Stage(stage),
                token=int(token),
                attempt=int(attempt),
                job=self.job(job_id),
            )
        except UnreadableRecord as error:
            # nobody of this release can run it: it ends here, or every worker would claim it in turn
            logger.error("%s cannot be run: %s", task_id, error)
            failure = Failure(
                code=error.code,
                message=error.message,
                hint=error.hint,
                stage=Stage(stage),
                attempt=int(attempt),
                user_fault=False,
            )
            self._run("give_up", task_id, token, failure.model_dump_json())
            return None

    def renew(self, task_id: str, token: int) -> Renewal:
        """Extends the lease of a running attempt and says what is wanted of it."""
        return Renewal(self._run("renew", task_id, token, round(self._timings.lease * 1000)))

    def progress(self, task_id: str, token: int, progress: Progress) -> bool:
        """Records how far an attempt is. False: the token is stale."""
        return self._holds("progress", task_id, token, _json(progress))

    def log(self, task_id: str, token: int, message: str) -> bool:
        """Records a line for people. False: the token is stale."""
        return self._holds("log", task_id, token, json.dumps({"message": message}))

    def checkpoint(self, task_id: str, token: int, checkpoint: Checkpoint) -> bool:
        """Records a checkpoint a later attempt can resume from. False: the token is stale."""
        return self._holds("checkpoint", task_id, token, _json(checkpoint))

    def commit(
        self,
        task_id: str,
        token: int,
        *,
        result: dict[str, Any],
        artifacts: tuple[Artifact, ...],
        fingerprint: str,
        reused_from: str | None = None,
    ) -> CommitAnswer:
        """Makes an attempt's result the stage's result and queues the next stage.

        In the same transaction a registered version gets its number, and a measured one is
        promoted where its gate lets it and nothing else was promoted meanwhile.

        Args:
            task_id: the stage.
            token: the attempt.
            result: what the stage says, JSON.
            artifacts: the files, complete on disk.
            fingerprint: digest of everything the outputs depend on, for reuse.
            reused_from: job whose committed stage was taken over instead of a run.
        """
        files = json.dumps([a.model_dump(mode="json") for a in artifacts])
        return CommitAnswer(
            self._run(
                "commit",
                task_id,
                token,
                json.dumps(result),
                files,
                fingerprint,
                reused_from or "",
                *change_of(Stage(task_id.rpartition("-")[2]), result),
            )
        )

    def fail(self, task_id: str, token: int, failure: Failure, *, retryable: bool) -> bool:
        """Ends an attempt with an error: retried after a pause, or the end of the job.

        Returns:
            False when the token is stale.
        """
        return self._holds(
            "fail",
            task_id,
            token,
            _json(failure),
            int(retryable),
            self._timings.retries,
            round(self._timings.retry_backoff * 1000),
            _LONGEST_BACKOFF * 1000,
        )

    def crash(self, task_id: str, token: int, failure: Failure) -> bool:
        """Ends an attempt that died without a word: queued again, failed once the budget is spent.

        Returns:
            False when the token is stale.
        """
        budget = self._timings.crash_budget
        return self._holds("crash", task_id, token, _json(failure), budget)

    def release(self, task_id: str, token: int) -> bool:
        """Gives a stage back to its old place in the queue. False: the token is stale."""
        return self._holds("release", task_id, token)

    def cancelled(self, task_id: str, token: int) -> bool:
        """Ends an attempt that was stopped by a cancel. False: stale, or nobody cancelled."""
        return self._holds("cancelled", task_id, token)

    def reap(self) -> list[Hint]:
        """Takes stages from workers that fell silent and readies due retries.

        Returns:
            Hints to send: those stages, and ready ones that have waited too long without one.
        """
        queues = [part for q in Queue for part in (q, broker_prefix(self.namespace) + q)]
        flat = self._run(
            "reap", self._timings.crash_budget, round(self._timings.rehint * 1000), *queues
        )
        return [
            Hint(job_id=job_id, stage=Stage(stage))
            for job_id, stage in zip(flat[::2], flat[1::2], strict=True)
        ]

    # Workers

    def require_writes(self) -> None:
        """Asks the server for a write, as everything else here needs one.

        Raises:
            RedisUnavailable: it does not answer, its disk is full, or it is a replica.
        """
        with self._connection.client() as client:
            client.set(self._key("probe"), "1", ex=_PROBE_SECONDS)

    def heartbeat(self, worker: WorkerInfo) -> None:
        """Says that a worker is alive; it is listed for a minute."""
        self._run("heartbeat", worker.id, _json(worker), round(_WORKER_SECONDS * 1000))

    def drain(self, worker_id: str) -> None:
        """Asks a worker to give its stage back; it gets no new one."""
        with self._connection.client() as client:
            client.set(self._key("draining", worker_id), "1", ex=_DRAIN_SECONDS)


def _json(document: Contract) -> str:
    return document.model_dump_json(exclude_none=True)


def _idempotency(key: str, owner: str) -> str:
    """Names the record of an idempotency key: two owners' `nightly-1` are two.

    That of `local` is named as it was before there were owners.
    """
    return f"key:{key}" if owner == LOCAL else f"by:{json.dumps([owner, key])}"


def _key_conflict(job_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"This Idempotency-Key was already used with another request, for job {job_id}.",
        param="Idempotency-Key",
        hint="Use a new key for a changed request, or send the old request with the old key.",
    )
