"""Which job works on a version, or compares with it: while one does, the version is not deleted.

Read outside of any script: who acts on it checks that nothing was submitted, claimed or committed since.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loco.contracts.jobs import JobStatus, StageStatus
from loco.contracts.stages import Stage
from loco.contracts.versions import Version
from loco.ledger.views import mapping_of

#: Jobs on the way from an eval to the job that built what it measures.
_LONGEST_CHAIN = 100
#: Events of a version after which it serves no longer.
_REPLACED = ("replaced", "rolled_back")


class AtWork(NamedTuple):
    """A job that has not ended, and what it does, in words."""

    job: str
    does: str


class Look:
    """One look at the jobs that have not ended."""

    def __init__(self, client: Any, key: Callable[..., str]) -> None:
        self._client = client
        self._key = key

    def find(self, adapter: str, version: Version) -> AtWork | None:
        """The first job that builds, measures or replays a version, or compares with it."""
        waiting: list[str] = []
        for status in JobStatus:
            if not status.is_terminal:
                waiting += self._client.zrange(self._key("jobs", "status", status), 0, -1)
        if version.job in waiting:
            return AtWork(version.job, "works on")
        for job_id, spec in zip(waiting, self._specs(waiting), strict=True):
            if version.job in (spec.get("from_job"), spec.get("replay_of")):
                return AtWork(job_id, "works on")
            measured = self._measured(job_id, spec)
            if measured == version.job:
                return AtWork(job_id, "works on")
            if spec.get("adapter") == adapter and self._compares(
                job_id, spec, measured, adapter, version
            ):
                return AtWork(job_id, "compares with")
        return None

    def _measured(self, job_id: str, spec: dict[str, Any]) -> str | None:
        """The job whose candidate a job measures: its own, or the nearest it builds on."""
        if Stage.REGISTER.value in str(spec.get("stages")):
            return job_id
        for _ in range(_LONGEST_CHAIN):
            source = spec.get("from_job")
            if not isinstance(source, str):
                return None
            if self._task(source, Stage.REGISTER, "status") in _COMMITTED:
                return source
            spec = self._specs([source])[0]
        return None

    def _compares(
        self,
        job_id: str,
        spec: dict[str, Any],
        measured: str | None,
        adapter: str,
        version: Version,
    ) -> bool:
        """Whether a job's eval runs, and the version has served under its model since it began."""
        if self._task(job_id, Stage.EVAL, "status") != StageStatus.RUNNING:
            return False
        asked = spec.get("register")
        model = self._model(measured) or (isinstance(asked, dict) and asked.get("model_name"))
        if model != version.model:
            return False
        owner, serving = self._client.hmget(self._key("promoted", model), "adapter", "version")
        if (owner, serving) == (adapter, str(version.version)):
            return True
        begun = int(self._task(job_id, Stage.EVAL, "started_at") or 0)
        events = self._key("version", adapter, str(version.version), "events")
        told = [json.loads(event) for event in self._client.lrange(events, 0, -1)]
        return any(e["action"] in _REPLACED and int(e["at"]) >= begun for e in told)

    def _model(self, builder: str | None) -> str | None:
        """The model that a job registered."""
        result = self._task(builder, Stage.REGISTER, "result") if builder else None
        return str(mapping_of(result).get("candidate", "")).partition(":")[0] or None

    def _task(self, job_id: str, stage: Stage, field: str) -> str | None:
        found = self._hashes([self._key("task", f"{job_id}-{stage}")], field)[0]
        return found if isinstance(found, str) else None

    def _specs(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        return [mapping_of(s) for s in self._hashes([self._key("job", j) for j in jobs], "spec")]

    def _hashes(self, keys: Sequence[str], field: str) -> list[Any]:
        """A field of each; an error in its place where another program left something else."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.hget(key, field)
        return list(pipeline.execute(raise_on_error=False))


_COMMITTED = tuple(status for status in StageStatus if status.is_committed)
