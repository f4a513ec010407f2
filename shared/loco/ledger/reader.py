"""What the ledger knows, read: jobs, tasks, events, workers. `loco.ledger.ledger` changes it."""

import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from loco.contracts.errors import InvalidRequest, NotFound, UnreadableRecord
from loco.contracts.jobs import Job, JobEvent, JobLine, JobStatus, Task, UnreadableJob, WorkerInfo
from loco.contracts.stages import Queue, Stage
from loco.ledger.connection import Connection
from loco.ledger.registry import Registry
from loco.ledger.removals import Removals
from loco.ledger.scripts import Scripts
from loco.ledger.sweeps import Sweeps
from loco.ledger.views import (
    LINE_FIELDS,
    Fields,
    hash_of,
    job_view,
    legible,
    line_view,
    parse_event,
    readable,
    task_view,
    worker_view,
)
from loco.ledger.withdrawals import Withdrawals
from loco.settings import Timings

#: Jobs read from Redis at a time.
_BATCH = 25
#: Jobs whose lines are read from Redis at a time.
_LINES = 200
#: Events read at a time where the first ones were none.
_EVENTS = 200
#: A page ends before it is larger, in characters.
_PAGE_CHARACTERS = 1_000_000

logger = logging.getLogger(__name__)


class JobsPage(NamedTuple):
    """Some jobs, newest first."""

    jobs: list[Job]
    #: Those whose records cannot be read, among them.
    unreadable: list[UnreadableJob]
    #: Whether more follow.
    more: bool
    #: ID of the last one, read or not.
    last: str | None = None


class LedgerReader:
    """The records of one Redis namespace."""

    def __init__(self, connection: Connection, *, namespace: str, timings: Timings) -> None:
        self.namespace = namespace
        self._connection = connection
        self._timings = timings
        self._scripts = Scripts(connection, namespace)
        #: The versions of every adapter, and what each model points to.
        self.registry = Registry(connection, self._scripts, namespace=namespace)
        #: Sweeps: trainings that are compared.
        self.sweeps = Sweeps(connection, self._scripts, namespace=namespace)
        #: How jobs are deleted.
        self.removals = Removals(connection, self._scripts, namespace=namespace)
        self.withdrawals = Withdrawals(connection, self._scripts, namespace=namespace)

    @classmethod
    def connect(cls, url: str, *, namespace: str = "loco", timings: Timings | None = None) -> Self:
        """The records at a Redis URL. The socket opens with the first call."""
        return cls(Connection(url), namespace=namespace, timings=timings or Timings())

    def close(self) -> None:
        """Closes the sockets; a later call opens them again."""
        self._connection.close()

    def ping(self) -> None:
        """Asks the server whether it is there."""
        with self._connection.client() as client:
            client.ping()

    def job(self, job_id: str) -> Job:
        """A job with its stages, read at one moment.

        Raises:
            NotFound: no such job.
            UnreadableRecord: there is one, but it cannot be read.
        """
        [record] = self._records([job_id])
        if not record.fields:
            raise NotFound(f"No job {job_id!r}.", param="job_id", hint="`loco jobs` lists them.")
        return record.job()

    def jobs(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | None = None,
        adapter: str | None = None,
    ) -> tuple[list[Job], bool]:
        """A page of jobs, newest first, and whether there are more; see `page`."""
        page = self.page(
            after=after, limit=limit, status=status, adapter=adapter, longest=sys.maxsize
        )
        return page.jobs, page.more

    def page(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        status: JobStatus | None = None,
        adapter: str | None = None,
        longest: int = _PAGE_CHARACTERS,
    ) -> JobsPage:
        """Some jobs, newest first.

        Args:
            after: ID of the last job of the page before.
            limit: jobs on a page, those that cannot be read among them; at least 1.
            status: only jobs of this status.
            adapter: only jobs of this adapter.
            longest: characters that their records may have together; a single one may have more.

        Raises:
            InvalidRequest: `after` is not a job.
        """
        index = self._index(status, adapter)
        below = "+inf"
        if after is not None:
            below = f"({self._seq(after)}"
        page = JobsPage([], [], more=False)
        size = 0
        while True:
            with self._connection.client() as client:
                entries = client.zrevrangebyscore(
                    index, below, "-inf", start=0, num=_BATCH, withscores=True
                )
            if not entries:
                return page
            for record in self._records([job_id for job_id, _ in entries]):
                if not record.fields:
                    continue
                count = len(page.jobs) + len(page.unreadable)
                full = count == limit or (page.jobs and size + record.size > longest)
                try:
                    job = record.job()
                except UnreadableRecord as error:
                    if full:
                        return page._replace(more=True)
                    logger.warning("%s", error)
                    page.unreadable.append(UnreadableJob(id=record.id, message=error.message))
                    page = page._replace(last=record.id)
                    continue
                if status in (None, job.status) and adapter in (None, job.adapter):
                    if full:
                        return page._replace(more=True)
                    page.jobs.append(job)
                    page = page._replace(last=record.id)
                    size += record.size
            # as Redis gave it: what follows is below, whatever somebody wrote there
            below = f"({entries[-1][1]!r}"

    def lines(self, *, like: str = "", owner: str | None = None, limit: int = 20) -> list[JobLine]:
        """Jobs in a line each, newest first; one whose record cannot be read is left out.

        Args:
            like: only those whose ID, or the last part of it, begins so.
            owner: only theirs; none: everybody's.
            limit: so many at most.
        """
        with self._connection.client() as client:
            ids = client.zrevrange(self._key("jobs"), 0, -1)
        wanted = [i for i in ids if i.startswith(like) or i.rpartition("-")[2].startswith(like)]
        found: list[JobLine] = []
        for start in range(0, len(wanted), _LINES):
            batch = wanted[start : start + _LINES]
            with self._connection.client() as client:
                pipeline = client.pipeline(transaction=False)
                for job_id in batch:
                    pipeline.hmget(self._key("job", job_id), *LINE_FIELDS)
                answers = pipeline.execute(raise_on_error=False)
            rows = legible("job", zip(batch, answers, strict=True), line_view)
            found += [line for line in rows if owner in (None, line.owner)]
            if len(found) >= limit:
                break
        return found[:limit]

    def _index(self, status: JobStatus | None, adapter: str | None) -> str:
        """The sorted set of the jobs that are wanted."""
        if status is not None and adapter is not None:
            self._run("index")  # an earlier release did not keep this one
            return self._key("jobs", "adapter", adapter, "status", status)
        if status is not None:
            return self._key("jobs", "status", status)
        return self._key("jobs") if adapter is None else self._key("jobs", "adapter", adapter)

    def task(self, task_id: str) -> Task:
        """One stage of a job.

        Raises:
            NotFound: no such task.
            UnreadableRecord: there is one, but it cannot be read.
        """
        with self._connection.client() as client:
            fields = client.hgetall(self._key("task", task_id))
        if not fields:
            raise NotFound(
                f"No task {task_id!r}.", param="task_id", hint="Task IDs look like JOB_ID-STAGE."
            )
        with readable("task", task_id):
            return task_view(fields)

    def tasks(self, task_ids: list[str]) -> list[Task]:
        """Some stages, in this order; one that is gone or cannot be read is left out."""
        with self._connection.client() as client:
            pipeline = client.pipeline(transaction=False)
            for task_id in task_ids:
                pipeline.hgetall(self._key("task", task_id))
            answers = pipeline.execute(raise_on_error=False)
        told = [(i, fields) for i, fields in zip(task_ids, answers, strict=True) if fields]
        return legible("task", told, lambda _, fields: task_view(hash_of(fields)))

    def line(self, queue: Queue) -> tuple[list[str], list[str], list[str]]:
        """The task IDs of a queue that run, that are ready (the next one first), and that wait for a time."""
        with self._connection.client() as client:
            pipeline = client.pipeline(transaction=True)
            for name in (("leases",), ("ready", queue), ("delayed", queue)):
                pipeline.zrange(self._key(*name), 0, -1)
            leases, ready, delayed = pipeline.execute()
        stages = {stage.value for stage in Stage if stage.queue is queue}
        return [i for i in leases if i.rpartition("-")[2] in stages], list(ready), list(delayed)

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

    def events(self, job_id: str, *, after: str = "0", limit: int = 100) -> list[JobEvent]:
        """Events of a job after a stream ID, oldest first; an entry that is none is left out.

        Raises:
            NotFound: no such job.
            InvalidRequest: `after` is not a stream ID.
        """
        _check_event_id(after)
        found: list[JobEvent] = []
        count = limit
        while True:
            with self._connection.client() as client:
                entries = client.xrange(self.events_key(job_id), min=f"({after}", count=count)
            found += self.legible_events(job_id, entries)
            if len(found) >= limit or len(entries) < count:
                break
            after, count = entries[-1][0], max(limit, _EVENTS)
        if not found:
            self._seq(job_id, missing=NotFound)
        return found[:limit]

    def latest_events(
        self, job_id: str, *, before: str | None = None, limit: int = 20
    ) -> list[JobEvent]:
        """Events of a job before a stream ID, newest first; an entry that is none is left out.

        Raises:
            NotFound: no such job.
            InvalidRequest: `before` is not a stream ID.
        """
        if before is not None:
            _check_event_id(before)
        found: list[JobEvent] = []
        top, count = "+" if before is None else f"({before}", limit
        while len(found) < limit:
            with self._connection.client() as client:
                entries = client.xrevrange(self.events_key(job_id), max=top, count=count)
            found += self.legible_events(job_id, entries)
            if len(entries) < count:
                break
            top, count = f"({entries[-1][0]}", max(limit, _EVENTS)
        if not found:
            self._seq(job_id, missing=NotFound)
        return found[:limit]

    def events_key(self, job_id: str) -> str:
        """The stream of a job's events, for XREAD; entries go through `legible_events`."""
        return self._key("events", job_id)

    def legible_events(self, job_id: str, entries: Iterable[tuple[str, Fields]]) -> list[JobEvent]:
        """Entries of a job's stream as events; one that is none is left out."""
        return legible(f"event of job {job_id}", entries, parse_event)

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

    def workers(self) -> list[WorkerInfo]:
        """Workers heard of in the last minute, by ID; one whose record cannot be read is left out."""
        with self._connection.client() as client:
            ids = sorted(client.zrange(self._key("workers"), 0, -1))
            pipeline = client.pipeline(transaction=False)
            for worker_id in ids:
                pipeline.hgetall(self._key("worker", worker_id))
            answers = pipeline.execute(raise_on_error=False)
        told = [(w, fields) for w, fields in zip(ids, answers, strict=True) if fields]
        return legible("worker", told, lambda _, fields: worker_view(hash_of(fields)))

    def _key(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    def _run(self, name: str, *arguments: str | int) -> Any:
        return self._scripts.run(name, *arguments)

    def _holds(self, name: str, *arguments: str | int) -> bool:
        """Runs a script that answers 1, or 0 when the token is stale."""
        return int(self._run(name, *arguments)) == 1

    def _records(self, job_ids: list[str]) -> "list[_Record]":
        """What is stored of jobs, in this order, each with its stages as of one moment."""
        with self._connection.client() as client:
            pipeline = client.pipeline(transaction=True)
            for job_id in job_ids:
                pipeline.hgetall(self._key("job", job_id))
                for stage in Stage:
                    pipeline.hgetall(self._key("task", task_id_of(job_id, stage)))
            answers = pipeline.execute(raise_on_error=False)
        width = 1 + len(Stage)
        rows = [answers[start : start + width] for start in range(0, len(answers), width)]
        return [
            _Record(job_id, job, [task for task in tasks if task])
            for job_id, (job, *tasks) in zip(job_ids, rows, strict=True)
        ]

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


class _Record(NamedTuple):
    """A job as it is stored."""

    id: str
    #: Its hash, or the error that Redis answers where something else lies there.
    fields: Any
    tasks: list[Any]

    @property
    def size(self) -> int:
        """Characters."""
        hashes = (fields for fields in (self.fields, *self.tasks) if isinstance(fields, dict))
        return sum(len(value) for fields in hashes for value in fields.values())

    def job(self) -> Job:
        """The job.

        Raises:
            UnreadableRecord: it cannot be read.
        """
        with readable("job", self.id):
            return job_view(hash_of(self.fields), [hash_of(task) for task in self.tasks])


def _check_event_id(text: str) -> None:
    if not re.fullmatch(r"\d{1,19}(-\d{1,19})?", text):
        raise InvalidRequest(
            f"{text!r} is not an event ID.",
            param="after",
            hint="Use the `id` of the last event you have, or 0 for all.",
        )


def task_id_of(job_id: str, stage: Stage) -> str:
    """The ID of a stage of a job."""
    return f"{job_id}-{stage}"
