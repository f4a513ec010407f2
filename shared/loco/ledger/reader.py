"""What the ledger knows, read: jobs, tasks, events, workers. `loco.ledger.ledger` changes it."""

import re
from typing import Any, Self

from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import Job, JobEvent, JobStatus, Task, WorkerInfo
from loco.contracts.stages import Stage
from loco.ledger.connection import Connection
from loco.ledger.registry import Registry
from loco.ledger.scripts import Scripts
from loco.ledger.views import job_view, parse_event, task_view, worker_view
from loco.settings import Timings


class LedgerReader:
    """The records of one Redis namespace."""

    def __init__(self, connection: Connection, *, namespace: str, timings: Timings) -> None:
        self.namespace = namespace
        self._connection = connection
        self._timings = timings
        self._scripts = Scripts(connection, namespace)
        #: The versions of every adapter, and what each model points to.
        self.registry = Registry(connection, self._scripts, namespace=namespace)

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
                    index, below, "-inf", start=0, num=limit + 1, withscores=True
                )
            if not page:
                break
            found += [
                job
                for job in self._read([job_id for job_id, _ in page])
                if (status is None or job.status is status)
                and (adapter is None or job.adapter == adapter)
            ]
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

    def workers(self) -> list[WorkerInfo]:
        """Workers heard of in the last minute, by ID."""
        with self._connection.client() as client:
            ids = sorted(client.zrange(self._key("workers"), 0, -1))
            pipeline = client.pipeline(transaction=False)
            for worker_id in ids:
                pipeline.hgetall(self._key("worker", worker_id))
            return [worker_view(fields) for fields in pipeline.execute() if fields]

    def _key(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    def _run(self, name: str, *arguments: str | int) -> Any:
        return self._scripts.run(name, *arguments)

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


def task_id_of(job_id: str, stage: Stage) -> str:
    """The ID of a stage of a job."""
    return f"{job_id}-{stage}"
