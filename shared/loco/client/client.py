"""The client of a locollm server, for scripts and for the command line.

    from loco import Client

    with Client("http://neurocore:8321") as loco:
        job = loco.submit("math", profile="tiny", wait=True)
        loco.download(job.id, "gguf/unsloth.Q4_K_M.gguf", "math.gguf")

Every method raises the classes of `loco.contracts.errors` that the server raised, and `ServerUnreachable`
when none answers.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from loco.client.chat import chat
from loco.client.datasets import DataSetMethods
from loco.client.download import download
from loco.client.events import START, Deadline, Follower, read_job
from loco.client.http import PAUSES, Transport, path_of, understood
from loco.client.keys import KeyMethods
from loco.client.recipes import RecipeMethods
from loco.client.references import job_id_of, lines
from loco.client.sweeps import SweepMethods
from loco.client.target import default_key, default_server
from loco.client.versions import VersionMethods
from loco.contracts.artifacts import Artifact
from loco.contracts.diffs import JobDiff
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.jobs import Job, JobEvent, JobLine, JobStatus, Task, UnreadableJob, WorkerInfo
from loco.contracts.logs import LogPage
from loco.contracts.previews import Preview
from loco.contracts.removals import Removal
from loco.contracts.stages import Stage


class Overrides(TypedDict, total=False):
    """What a submit may change besides adapter, profile and stages."""

    from_job: str
    base_model: str
    prepare: Mapping[str, Any]
    train: Mapping[str, Any]
    export: Mapping[str, Any]
    register: Mapping[str, Any]
    eval: Mapping[str, Any]
    seed: int
    reuse: bool
    priority: int
    not_before: str
    metadata: Mapping[str, str]


class Client(DataSetMethods, KeyMethods, RecipeMethods, SweepMethods, VersionMethods):
    """Talks to one server. Use it in a `with` block, or `close` it.

    Args:
        server: base URL; none: LOCO_SERVER, the `loco up` of this folder, or 127.0.0.1:8321.
        api_key: none: LOCO_API_KEY, else what the file LOCO_API_KEY_FILE holds.
        timeout: seconds for a connection and for each answer.
        patience: seconds that `wait` and `events` bear a server that does not answer.
        repeats: ask again where no answer came, for a second or so.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        patience: float = 120.0,
        repeats: bool = True,
    ) -> None:
        key = api_key or default_key()
        self._transport = Transport(
            server or default_server(), key, timeout=timeout, pauses=PAUSES if repeats else ()
        )
        self._patience = patience

    @property
    def server(self) -> str:
        """Base URL of the server."""
        return self._transport.server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def submit(
        self,
        adapter: str,
        *,
        profile: str = "default",
        stages: Sequence[Stage | str] | None = None,
        wait: bool = False,
        idempotency_key: str | None = None,
        **overrides: Unpack[Overrides],
    ) -> Job:
        """Asks for a job. Sent again after a lost answer, it is still one job.

        Args:
            adapter: name of the adapter.
            profile: profile of its recipe.
            stages: consecutive stages; none: all.
            wait: return the ended job instead of the accepted one.
            idempotency_key: the same key returns the same job; none: a fresh one.
            overrides: the other fields of the request, e.g. `train={"epochs": 5}`.
        """
        body: dict[str, Any] = {"adapter": adapter, "profile": profile, **overrides}
        if stages is not None:
            body["stages"] = [str(stage) for stage in stages]
        answer = self._transport.request(
            "POST",
            "/jobs",
            body=body,
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            repeatable=True,
        )
        job = _job(answer)
        return self.wait(job.id) if wait else job

    def plan(
        self,
        adapter: str,
        *,
        profile: str = "default",
        device: Mapping[str, Any] | None = None,
        stages: Sequence[Stage | str] | None = None,
        **overrides: Unpack[Overrides],
    ) -> Preview:
        """What such a job would take; nothing is started.

        Args:
            adapter: name of the adapter.
            profile: profile of its recipe.
            device: plan for this one, e.g. `{"name": "RTX 3070", "memory_gb": 8}`; none: the worker's.
            stages: consecutive stages; none: all.
            overrides: as for `submit`.

        Raises:
            OutOfMemory: it does not fit; the hint says what would.
        """
        body: dict[str, Any] = {"adapter": adapter, "profile": profile, **overrides}
        if device is not None:
            body["device"] = dict(device)
        if stages is not None:
            body["stages"] = [str(stage) for stage in stages]
        answer = self._transport.request("POST", "/plan", body=body, repeatable=True)
        return understood(Preview, answer)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return read_job(self._transport, path_of("jobs", job_id))

    def jobs(
        self,
        *,
        status: JobStatus | str | None = None,
        adapter: str | None = None,
        page_size: int = 50,
        on_unreadable: Callable[[UnreadableJob], object] | None = None,
    ) -> Iterator[Job]:
        """The jobs, newest first; pages are fetched as they are needed.

        Args:
            status: only jobs of this status.
            adapter: only jobs of this adapter.
            page_size: jobs a page, at most 100.
            on_unreadable: is told the ones whose records cannot be read, which are left out.
        """
        after: str | None = None
        while True:
            page = self._transport.get(
                "/jobs",
                after=after,
                limit=page_size,
                status=None if status is None else str(status),
                adapter=adapter,
            )
            jobs = [_job(entry) for entry in page["data"]]
            if on_unreadable is not None:
                for entry in page.get("unreadable", ()):
                    on_unreadable(understood(UnreadableJob, entry))
            yield from jobs
            after = page.get("last") or (jobs[-1].id if jobs else None)
            if not page["has_more"] or after is None:
                return

    def job_id(self, reference: str) -> str:
        """The ID of a job that is named in short; a whole ID is answered without a look.

        Args:
            reference: an ID, the beginning of one or of its last part, or `last`: the newest job of
                the owner of this key.

        Raises:
            NotFound: no job is named so.
            InvalidRequest: several are.
        """
        return job_id_of(self._transport, reference)

    def job_lines(self, *, like: str = "", mine: bool = False, limit: int = 20) -> list[JobLine]:
        """Jobs in a line each, newest first.

        Args:
            like: only those whose ID, or the last part of it, begins so.
            mine: only those of the owner of this key.
            limit: so many at most, up to 100.
        """
        return lines(self._transport, like=like, mine=str(mine).lower(), limit=limit)

    def task(self, task_id: str) -> Task:
        """One stage of a job by its task ID."""
        answer = self._transport.get(path_of("tasks", task_id))
        return understood(Task, answer)

    def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
    ) -> Job:
        """The job once it has ended, however it ended. Survives a restart of the server.

        Args:
            job_id: the job.
            timeout: seconds; none: as long as it takes.
            on_event: called with every event from the first one on.

        Raises:
            TimeoutError: it has not ended within `timeout`; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        follower = self._follower(job_id, START, deadline)
        try:
            for event in follower.events():
                if on_event is not None:
                    on_event(event)
        except Deadline as error:
            raise TimeoutError(f"Job {job_id} has not ended within {timeout} s.") from error
        assert follower.job is not None
        return follower.job

    def events(self, job_id: str, *, after: str = START) -> Iterator[JobEvent]:
        """The job's events after the one of ID `after`, live, until the job has ended."""
        return self._follower(job_id, after, None).events()

    def cancel(self, job_id: str) -> Job:
        """Asks for a job's end. An ended job stays as it is."""
        path = f"{path_of('jobs', job_id)}/cancel"
        return _job(self._transport.request("POST", path, repeatable=True))

    def retry(self, job_id: str) -> Job:
        """Has a failed or cancelled job go on from the stage that ended it."""
        path = f"{path_of('jobs', job_id)}/retry"
        return _job(self._transport.request("POST", path, repeatable=False))

    def removal(self, job_id: str) -> Removal:
        """What deleting a job would free, and what descends from it; nothing is deleted."""
        return understood(Removal, self._transport.get(f"{path_of('jobs', job_id)}/removal"))

    def remove(self, job_id: str) -> Removal:
        """Deletes an ended job, and of its files what nothing else needs.

        Raises:
            Conflict: it has not ended, or something descends from it; the message names that.
        """
        answer = self._transport.request("DELETE", path_of("jobs", job_id), repeatable=True)
        return understood(Removal, answer)

    def replay(
        self,
        job_id: str,
        *,
        promote: bool = False,
        wait: bool = False,
        idempotency_key: str | None = None,
    ) -> Job:
        """Runs a job once more: the same spec, the same frozen inputs, every stage anew.

        Args:
            job_id: the job.
            promote: let the gate promote the replay, and publish its files.
            wait: return the ended job instead of the accepted one; `diff` says what differs.
            idempotency_key: the same key returns the same job; none: a fresh one.

        Raises:
            Conflict: what the job read is not kept any more.
        """
        answer = self._transport.request(
            "POST",
            f"{path_of('jobs', job_id)}/replay",
            body={"promote": promote},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            repeatable=True,
        )
        job = _job(answer)
        return self.wait(job.id) if wait else job

    def diff(self, first: str, second: str) -> JobDiff:
        """Where two jobs differ, and how much alike they came out."""
        answer = self._transport.get(f"{path_of('jobs', first)}/diff", **{"with": second})
        return understood(JobDiff, answer)

    def log(
        self, job_id: str, stage: Stage | str, *, attempt: int | None = None, offset: int = 0
    ) -> LogPage:
        """A piece of a stage's log; ask on at its `next_offset`.

        Args:
            job_id: the job.
            stage: one of its stages.
            attempt: which of those that left a log, from 1; none: the newest.
            offset: byte to begin at.
        """
        path = path_of("jobs", job_id, "logs", str(stage))
        return understood(LogPage, self._transport.get(path, attempt=attempt, offset=offset))

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """The job's inputs and the files its stages have committed so far."""
        page = self._transport.get(f"{path_of('jobs', job_id)}/artifacts")
        return tuple(understood(Artifact, entry) for entry in page["data"])

    def download(self, job_id: str, artifact_name: str, path: str | Path) -> Path:
        """Brings an artifact here; goes on where an earlier call was cut off.

        Args:
            job_id: the job.
            artifact_name: as `artifacts` says, `STAGE/NAME` where two stages have the same name.
            path: file to write, or a folder to put it in.

        Returns:
            The file, whose SHA-256 is the committed one.
        """
        artifact = self._artifact(job_id, artifact_name)
        target = Path(path)
        if target.is_dir():
            target = target / artifact.name.rpartition("/")[2]
        return download(self._transport, job_id, artifact, target)

    def adapters(self) -> list[dict[str, Any]]:
        """The adapters of the server."""
        return list(self._transport.get("/adapters")["data"])

    def bases(
        self, *, gpu_memory: float | None = None, gpu_name: str | None = None
    ) -> dict[str, Any]:
        """The base models of the server's catalog, and the `device` that `fits` speaks of.

        Args:
            gpu_memory: for a GPU of so many 10^9 bytes; none: the worker's device.
            gpu_name: its name, like `RTX 3070`.
        """
        memory = None if gpu_memory is None else str(gpu_memory)
        return dict(self._transport.get("/bases", gpu_memory=memory, gpu_name=gpu_name))

    def adapter(self, name: str) -> dict[str, Any]:
        """One adapter: its recipe, what it resolves to, and its registered `versions`."""
        return dict(self._transport.get(path_of("adapters", name)))

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], **options: Any
    ) -> Iterator[str]:
        """A model's answer, piece by piece as it comes.

        Args:
            model: its name in Ollama, like `locollm-math:latest`.
            messages: the conversation, `{"role", "content"}` each.
            options: further fields of OpenAI's request. What is left out of temperature and top_p is 1,
                not what the model was made with.
        """
        return chat(self._transport, model, messages, options)

    def workers(self) -> list[WorkerInfo]:
        """The workers heard of in the last minute."""
        page = self._transport.get("/workers")
        return [understood(WorkerInfo, entry) for entry in page["data"]]

    def ready(self) -> dict[str, Any]:
        """Whether the server can take and run jobs, part by part (also when it cannot)."""
        answers = frozenset({503})
        return dict(self._transport.request("GET", "/readyz", repeatable=True, answers=answers))

    def version(self) -> dict[str, Any]:
        """The server's version."""
        return dict(self._transport.get("/version"))

    def _follower(self, job_id: str, after: str, deadline: float | None) -> Follower:
        return Follower(
            self._transport, job_id, after=after, patience=self._patience, deadline=deadline
        )

    def _artifact(self, job_id: str, name: str) -> Artifact:
        artifacts = self.artifacts(job_id)
        exact = [a for a in artifacts if a.full_name == name]
        # what a stage wrote goes before what it read
        found = exact or [a for a in artifacts if a.name == name and a.stage is not None]
        found = found or [a for a in artifacts if a.name == name]
        if not found:
            here = ", ".join(a.name for a in artifacts) or "none yet"
            raise NotFound(
                f"Job {job_id} has no artifact {name!r}. Artifacts: {here}.",
                param="artifact_name",
                hint=f"List them with `loco artifacts {job_id}`.",
            )
        if len(found) > 1:
            raise InvalidRequest(
                f"Several stages of job {job_id} have an artifact {name!r}.",
                param="artifact_name",
                hint="Say which: " + " or ".join(a.full_name for a in found) + ".",
            )
        return found[0]


def _job(answer: Any) -> Job:
    return understood(Job, answer)
