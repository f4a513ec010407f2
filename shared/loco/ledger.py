"""The ledger: the truth about jobs, in Redis.

Every transition is one Lua script (loco/lua/*.lua) on the server's clock; nothing else writes job
state. Celery messages are only hints that there may be work. An attempt is known by its fencing
token: whoever comes with an older one is told so and changes nothing.
"""

import json
import re
import secrets
import uuid
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from typing import Any, Self

from loco.artifacts import Artifact
from loco.connection import Connection
from loco.contracts import Contract
from loco.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound
from loco.events import Progress
from loco.jobs import Checkpoint, Failure, Job, JobEvent, JobStatus, Task, WorkerInfo
from loco.ledger_views import job_view, parse_event, task_view, worker_view
from loco.settings import Timings
from loco.specs import JobSpec
from loco.stages import Queue, Stage

__all__ = ["Claim", "CommitAnswer", "Hint", "Ledger", "Renewal", "parse_event"]

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
_PAGE = 100


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


def task_id_of(job_id: str, stage: Stage) -> str:
    """The ID of a stage of a job."""
    return f"{job_id}-{stage}"


class Ledger:
    """Jobs, stages, leases and events in one Redis namespace. Safe to share between threads.

    Every method raises `RedisUnavailable` when the server does not answer or takes no writes.
    """

    def __init__(self, connection: Connection, *, namespace: str, timings: Timings) -> None:
        self.namespace = namespace
        self._connection = connection
        self._timings = timings
        self._scripts: dict[str, Any] = {}

    @classmethod
    def connect(cls, url: str, *, namespace: str = "loco", timings: Timings | None = None) -> Self:
        """A ledger at a Redis URL. The socket opens with the first call."""
        return cls(Connection(url), namespace=namespace, timings=timings or Timings())

    def close(self) -> None:
        """Closes the sockets; a later call opens them again."""
        self._connection.close()

    def ping(self) -> None:
        """Asks the server whether it is there."""
        with self._connection.client() as client:
            client.ping()

    # Jobs

    def submit(
        self,
        spec: JobSpec,
        *,
        priority: int = 0,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        request_digest: str = "",
    ) -> tuple[Job, bool]:
        """Accepts a job and queues its first stage.

        Args:
            spec: what to do, resolved.
            priority: higher runs first, -100 to 100.
            metadata: kept with the job, not interpreted.
            idempotency_key: the same key gives the same job for 7 days.
            request_digest: tells a repeated request from another one under the same key.

        Returns:
            The job, and whether this call created it.

        Raises:
            IdempotencyConflict: the key came with another digest before.
        """
        key = f"key:{idempotency_key}" if idempotency_key else f"call:{uuid.uuid4().hex}"
        lifetime = _IDEMPOTENCY_SECONDS if idempotency_key else _REPEAT_SECONDS
        job_id, outcome = self._run(
            "submit",
            key,
            lifetime * 1000,
            request_digest,
            secrets.randbelow(16**6),
            spec.adapter,
            spec.profile,
            ",".join(spec.stages),
            ",".join(stage.queue for stage in spec.stages),
            priority,
            json.dumps(dict(metadata or {})),
            spec.model_dump_json(by_alias=True),
        )
        if outcome == "conflict":
            raise _key_conflict(job_id)
        return self.job(job_id), outcome == "created"

    def accepted(self, idempotency_key: str, request_digest: str) -> Job | None:
        """The job this key was accepted for, if any.

        Raises:
            IdempotencyConflict: the key came with another digest.
        """
        with self._connection.client() as client:
            known = client.hgetall(self._key("idem", f"key:{idempotency_key}"))
        if not known:
            return None
        if known["digest"] != request_digest:
            raise _key_conflict(known["job"])
        return self.job(known["job"])

    def job(self, job_id: str) -> Job:
        """A job with its stages, read at one moment.

        Raises:
            NotFound: no such job.
        """
        jobs = self._read([job_id])
        if not jobs:
            raise NotFound(f"No job {job_id!r}.", param="job_id", hint="`loco jobs` lists them.")
        return jobs[0]

    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | None = None,
        adapter: str | None = None,
    ) -> tuple[list[Job], bool]:
        """A page of jobs, newest first, and whether there are more.

        Args:
            after: ID of the last job of the page before.
            limit: jobs on a page, at least 1.
            status: only jobs of this status.
            adapter: only jobs of this adapter.

        Raises:
            InvalidRequest: `after` is not a job.
        """
        index = self._key("jobs")
        if status is not None:
            index = self._key("jobs", "status", status)
        elif adapter is not None:
            index = self._key("jobs", "adapter", adapter)
        below = "+inf"
        if after is not None:
            below = f"({self._seq(after)}"
        found: list[Job] = []
        while len(found) <= limit:
            with self._connection.client() as client:
                page = client.zrevrangebyscore(
                    index, below, "-inf", start=0, num=_PAGE, withscores=True
                )
            if not page:
                break
            wanted = limit + 1 - len(found)
            matching = [
                job
                for job in self._read([job_id for job_id, _ in page][: max(wanted, _PAGE)])
                if (status is None or job.status is status)
                and (adapter is None or job.adapter == adapter)
            ]
            found += matching
            below = f"({int(page[-1][1])}"
        return found[:limit], len(found) > limit

    def task(self, task_id: str) -> Task:
        """One stage of a job.

        Raises:
            NotFound: no such task.
        """
        with self._connection.client() as client:
            fields = client.hgetall(self._key("task", task_id))
        if not fields:
            raise NotFound(
                f"No task {task_id!r}.", param="task_id", hint="Task IDs look like JOB_ID-STAGE."
            )
        return task_view(fields)

    def outputs(self, job: Job) -> dict[Stage, Task]:
        """The committed tasks whose files a job may read: its own, then those of its `from_job`s."""
        found: dict[Stage, Task] = {}
        seen: set[str] = set()
        current: Job | None = job
        while current is not None:
            seen.add(current.id)
            for task in current.stages:
                if task.status.is_committed:
                    found.setdefault(task.stage, task)
            source = current.spec.from_job
            current = self.job(source) if source and source not in seen else None
        return found

    def cancel(self, job_id: str) -> Job:
        """Cancels a job: at once what waits; a running stage hears it at its next renewal.

        A job that has ended is returned unchanged.

        Raises:
            NotFound: no such job.
        """
        self._run("cancel", job_id)
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
                f"Job {job_id} is {answer}; only failed and cancelled jobs can be retried.",
                param="job_id",
                hint="Submit a new job; stages whose inputs match are taken over.",
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
        return Claim(
            task_id=task_id,
            job_id=job_id,
            stage=Stage(stage),
            token=int(token),
            attempt=int(attempt),
            job=self.job(job_id),
        )

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

    # What others read

    def events(self, job_id: str, *, after: str = "0", limit: int = 100) -> list[JobEvent]:
        """Events of a job after a stream ID, oldest first.

        Raises:
            NotFound: no such job.
            InvalidRequest: `after` is not a stream ID.
        """
        if not re.fullmatch(r"\d{1,19}(-\d{1,19})?", after):
            raise InvalidRequest(
                f"{after!r} is not an event ID.",
                param="after",
                hint="Use the `id` of the last event you have, or 0 for all.",
            )
        with self._connection.client() as client:
            entries = client.xrange(self.events_key(job_id), min=f"({after}", count=limit)
        if not entries:
            self._seq(job_id, missing=NotFound)
        return [parse_event(stream_id, fields) for stream_id, fields in entries]

    def events_key(self, job_id: str) -> str:
        """The stream of a job's events, for XREAD; entries go through `parse_event`."""
        return self._key("events", job_id)

    def committed(self, fingerprint: str) -> Task | None:
        """The newest task that ran with these inputs and committed; its files may be gone."""
        with self._connection.client() as client:
            task_id = client.hget(self._key("reuse"), fingerprint)
        return self.task(task_id) if task_id else None

    def newest(self, adapter: str, profile: str, stage: Stage) -> str | None:
        """The job that last committed a stage of this adapter and profile."""
        with self._connection.client() as client:
            job_id = client.hget(self._key("newest", adapter), f"{profile}:{stage}")
        return None if job_id is None else str(job_id)

    def unpublished(self) -> list[str]:
        """Task IDs whose files are committed but not yet beside the recipe, oldest commit first."""
        with self._connection.client() as client:
            return list(client.zrange(self._key("unpublished"), 0, -1))

    def published(self, task_id: str) -> None:
        """Says that a task's files are beside the recipe."""
        with self._connection.client() as client:
            client.zrem(self._key("unpublished"), task_id)

    # Workers

    def heartbeat(self, worker: WorkerInfo) -> None:
        """Says that a worker is alive; it is listed for a minute."""
        self._run("heartbeat", worker.id, _json(worker), _WORKER_SECONDS * 1000)

    def workers(self) -> list[WorkerInfo]:
        """Workers heard of in the last minute, by ID."""
        with self._connection.client() as client:
            ids = sorted(client.zrange(self._key("workers"), 0, -1))
            pipeline = client.pipeline(transaction=False)
            for worker_id in ids:
                pipeline.hgetall(self._key("worker", worker_id))
            return [worker_view(fields) for fields in pipeline.execute() if fields]

    def drain(self, worker_id: str) -> None:
        """Asks a worker to give its stage back; it gets no new one."""
        with self._connection.client() as client:
            client.set(self._key("draining", worker_id), "1", ex=_DRAIN_SECONDS)

    def _key(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    def _run(self, name: str, *arguments: str | int) -> Any:
        with self._connection.client() as client:
            if name not in self._scripts:
                self._scripts[name] = client.register_script(_source(name))
            return self._scripts[name](args=[self.namespace, *arguments])

    def _holds(self, name: str, *arguments: str | int) -> bool:
        """Runs a script that answers 1, or 0 when the token is stale."""
        return int(self._run(name, *arguments)) == 1

    def _read(self, job_ids: list[str]) -> list[Job]:
        """Jobs by ID, those that exist, each with its stages as of one moment."""
        with self._connection.client() as client:
            pipeline = client.pipeline(transaction=True)
            for job_id in job_ids:
                pipeline.hgetall(self._key("job", job_id))
                for stage in Stage:
                    pipeline.hgetall(self._key("task", task_id_of(job_id, stage)))
            answers = pipeline.execute()
        width = 1 + len(Stage)
        rows = [answers[start : start + width] for start in range(0, len(answers), width)]
        return [job_view(job, [t for t in tasks if t]) for job, *tasks in rows if job]

    def _seq(
        self, job_id: str, *, missing: type[NotFound | InvalidRequest] = InvalidRequest
    ) -> int:
        with self._connection.client() as client:
            seq = client.zscore(self._key("jobs"), job_id)
        if seq is None:
            raise missing(
                f"No job {job_id!r}.",
                param="job_id" if missing is NotFound else "after",
                hint="`loco jobs` lists them.",
            )
        return int(seq)


def _json(document: Contract) -> str:
    return document.model_dump_json(exclude_none=True)


def _source(name: str) -> str:
    folder = resources.files("loco") / "lua"
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()


def _key_conflict(job_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"This Idempotency-Key was used with another request, for job {job_id}.",
        param="Idempotency-Key",
        hint="Send a new key with a changed request, or the old request with the old key.",
    )
