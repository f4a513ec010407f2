"""Deleting jobs: what descends from one, the transition, and what is left to clear of its files.

The look for dependents is long, so it happens outside Redis; the script that deletes checks that
nothing was submitted or committed since, or the look starts again.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from loco.contracts.errors import Busy, Conflict
from loco.contracts.jobs import Job, JobStatus
from loco.contracts.removals import Removal, way_out
from loco.contracts.stages import Stage
from loco.ledger.connection import Connection
from loco.ledger.scripts import Scripts
from loco.ledger.views import mapping_of

#: A deletion may be repeated for so long (ms) after its answer was lost.
_REPEAT_MS = 600_000
#: Times that a look begins again where jobs come and stages commit meanwhile.
_LOOKS = 5
_BATCH = 200


class Leftover(NamedTuple):
    """The files of a deleted job, until they are gone."""

    job_id: str
    #: Folders below the adapters folder.
    folders: tuple[str, ...]
    #: Frozen inputs it read, likewise; others may read them too.
    inputs: tuple[str, ...]


class Removals:
    """Deletes the jobs of one Redis namespace."""

    def __init__(self, connection: Connection, scripts: Scripts, *, namespace: str) -> None:
        self._connection = connection
        self._run = scripts.run
        self._namespace = namespace

    def needed_by(self, job: Job) -> tuple[str, ...]:
        """What descends from a job, in words: versions, jobs that reuse, build on or replay it."""
        found = []
        with self._connection.client() as client:
            number = client.hget(self._key("versions", job.adapter, "jobs"), job.id)
            sweep = job.spec.sweep and client.hget(self._key("sweep", job.spec.sweep), "status")
        if number:
            found.append(f"version {number} of {job.adapter}")
        if sweep and not JobStatus(sweep).is_terminal:
            found.append(f"sweep {job.spec.sweep} (still running)")
        for other, spec, reused in self._others(job.id):
            if job.id in reused:
                found.append(f"job {other} (reuses its stages)")
            elif spec.get("from_job") == job.id:
                found.append(f"job {other} (builds on it)")
            elif spec.get("replay_of") == job.id:
                found.append(f"job {other} (replays it)")
        return tuple(found)

    def remove(self, job: Job, removal: Removal, leftover: Leftover) -> None:
        """Takes a job out of the ledger, with what is left to clear of it.

        Args:
            job: it has ended.
            removal: what a repeated call is answered.
            leftover: what is cleared then.

        Raises:
            Conflict: it has not ended, or something descends from it; the message names that.
            Busy: jobs come so fast that nobody can tell.
        """
        answer = json.dumps({"owner": job.owner, "removal": removal.model_dump(mode="json")})
        for _ in range(_LOOKS):
            with self._connection.client() as client:
                counts = client.mget(self._key("seq"), self._key("commits"))
            needed_by = self.needed_by(job)
            if needed_by:
                raise _needed(job, needed_by)
            told = self._run(
                "remove",
                job.id,
                *(str(count or "0") for count in counts),
                json.dumps(leftover._asdict()),
                answer,
                _REPEAT_MS,
            )
            if told in ("removed", "missing"):  # missing: somebody else was quicker
                return
            if told not in ("changed", "version"):
                raise Conflict(
                    f"Job {job.id} is {told}. Only ended jobs can be deleted.",
                    param="job_id",
                    hint=f"`loco cancel {job.id}` ends it.",
                )
        raise Busy(
            f"Jobs changed while the server searched for those that build on {job.id}.",
            hint="Try again in a moment.",
        )

    def removed(self, job_id: str) -> tuple[str | None, Removal] | None:
        """The owner of a job that was deleted a few minutes ago, and what went."""
        with self._connection.client() as client:
            answer = client.get(self._key("removed", job_id))
            waits = client.hexists(self._key("removing"), job_id)
        if not answer:
            return None
        known = json.loads(answer)
        removal = Removal.model_validate(known["removal"], extra="ignore")
        return known["owner"], removal.model_copy(update={"cleared": not waits})

    def leftovers(self) -> list[Leftover]:
        """Deleted jobs whose files are not gone yet."""
        with self._connection.client() as client:
            stored = client.hgetall(self._key("removing"))
        return [
            Leftover(job_id, tuple(found["folders"]), tuple(found["inputs"]))
            for job_id, found in ((i, json.loads(value)) for i, value in stored.items())
        ]

    def cleared(self, job_id: str) -> None:
        """Says that the files of a deleted job are gone."""
        with self._connection.client() as client:
            client.hdel(self._key("removing"), job_id)

    def inputs_in_use(self, *, but: str) -> set[str] | None:
        """Paths of the frozen inputs that any other job reads, below the adapters folder.

        None: a job's record cannot be read, so nobody can tell.
        """
        used: set[str] = set()
        for _, spec, _ in self._others(but):
            inputs = spec.get("inputs") or {}
            if not spec or not isinstance(inputs, dict):
                return None
            used |= {str(f["path"]) for f in inputs.values() if isinstance(f, dict) and "path" in f}
        return used

    def named(self, files: Iterable[str]) -> set[str]:
        """Which of these file names any job's export or any version names.

        Read as text: a record that cannot be read keeps what it names.
        """
        left, found = set(files), set()
        for text in self._exports_and_versions():
            found |= {name for name in left if name in text}
            left -= found
            if not left:
                break
        return found

    def _exports_and_versions(self) -> Iterator[str]:
        """What every export said and every version says, as stored."""
        with self._connection.client() as client:
            wanted = [
                self._key("task", f"{job_id}-{Stage.EXPORT}")
                for job_id in client.zrange(self._key("jobs"), 0, -1)
            ]
            for adapter in client.hkeys(self._key("version-count")):
                numbers = client.zrange(self._key("versions", adapter), 0, -1)
                wanted += [self._key("version", adapter, number) for number in numbers]
        for start in range(0, len(wanted), _BATCH):
            with self._connection.client() as client:
                pipeline = client.pipeline(transaction=False)
                for key in wanted[start : start + _BATCH]:
                    pipeline.hvals(key)
                # a key of another type names nothing
                answers = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, list):
                    yield "\n".join(str(value) for value in answer)

    def replayed_elsewhere(self, job_id: str, place: str) -> bool:
        """Whether another job than this one publishes its files at a place."""
        return any(spec.get("place") == place for _, spec, _ in self._others(job_id))

    def _others(self, job_id: str) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
        """Every other job: its ID, its spec as stored ({}: unreadable), and the jobs it reuses stages of."""
        with self._connection.client() as client:
            ids = [i for i in client.zrange(self._key("jobs"), 0, -1) if i != job_id]
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            with self._connection.client() as client:
                pipeline = client.pipeline(transaction=False)
                for other in batch:
                    pipeline.hget(self._key("job", other), "spec")
                    for stage in Stage:
                        pipeline.hget(self._key("task", f"{other}-{stage}"), "reused_from")
                answers = pipeline.execute(raise_on_error=False)
            width = 1 + len(Stage)
            for other, at in zip(batch, range(0, len(answers), width), strict=True):
                spec, *reused = answers[at : at + width]
                yield other, mapping_of(spec), {r for r in reused if isinstance(r, str)}

    def _key(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))


#: Dependents that an error names.
_NAMED = 5


def _needed(job: Job, needed_by: tuple[str, ...]) -> Conflict:
    more = f" and {len(needed_by) - _NAMED} more" if len(needed_by) > _NAMED else ""
    return Conflict(
        f"Job {job.id} is needed by {', '.join(needed_by[:_NAMED])}{more}.",
        param="job_id",
        hint=way_out(job.id, needed_by),
    )
