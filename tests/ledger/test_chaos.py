"""Workers that do anything in any order, at once: every job ends, every stage commits once."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from loco.contracts.errors import Conflict
from loco.contracts.jobs import Checkpoint, Failure
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue
from loco.ledger.ledger import Claim, CommitAnswer, Ledger, Renewal

pytestmark = pytest.mark.redis

JOBS = 8
WORKERS = 4
DEADLINE_SECONDS = 60


class Worker:
    """Claims stages and treats them badly; keeps old claims and uses them again."""

    def __init__(self, ledger: Ledger, name: str, seed: int) -> None:
        self._ledger = ledger
        self._name = name
        self._random = random.Random(seed)
        self._claims: list[Claim] = []
        self.committed: list[str] = []

    def work(self, jobs: list[str]) -> None:
        turn = 0
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            turn += 1
            self._ledger.reap()
            queue = self._random.choice(list(Queue))
            claim = self._ledger.claim(queue, worker_id=self._name, nonce=f"{self._name}-{turn}")
            if claim is not None:
                self._claims.append(claim)
            elif all(self._ledger.job(job_id).is_terminal for job_id in jobs):
                return
            if self._claims:
                self._act(self._random.choice(self._claims[-6:]))

    def _act(self, claim: Claim) -> None:
        task, token = claim.task_id, claim.token
        failure = Failure(
            code="x",
            message="Chaos.",
            stage=claim.stage,
            attempt=claim.attempt,
            user_fault=False,
        )
        match self._random.randrange(14):
            case 0:
                self._ledger.crash(task, token, failure)
            case 1:
                self._ledger.fail(task, token, failure, retryable=True)
            case 2:
                self._ledger.release(task, token)
            case 3:
                self._ledger.checkpoint(task, token, Checkpoint(path=f"c/{token}", step=token))
            case 4:
                time.sleep(0.03)  # longer than the lease
            case 5 if self._random.random() < 0.2:
                self._ledger.cancel(claim.job_id)
            case 6 if self._random.random() < 0.2:
                self._ledger.fail(task, token, failure, retryable=False)
            case _:
                if self._ledger.renew(task, token) is Renewal.CANCEL:
                    self._ledger.cancelled(task, token)
                    return
                answer = self._ledger.commit(
                    task, token, result={"token": token}, artifacts=(), fingerprint=task
                )
                if answer in (CommitAnswer.NEXT, CommitAnswer.DONE):
                    self.committed.append(task)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_job_ends_and_every_stage_commits_once(
    connect: Callable[..., Ledger], spec: Callable[..., JobSpec], seed: int
) -> None:
    ledger = connect(lease=0.02, retry_backoff=0.005, retries=5, crash_budget=6, rehint=0.05)
    wanted = spec()
    jobs = [ledger.submit(wanted, priority=i % 3)[0].id for i in range(JOBS)]
    workers = [Worker(ledger, f"w{i}", seed * 100 + i) for i in range(WORKERS)]
    for again in (False, True):
        threads = [threading.Thread(target=w.work, args=(jobs,)) for w in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(ledger.job(job_id).is_terminal for job_id in jobs)
        if not again:
            for job_id in jobs:
                try:
                    ledger.retry(job_id)
                except Conflict:
                    assert ledger.job(job_id).status == "succeeded"

    commits = Counter(task for worker in workers for task in worker.committed)
    assert set(commits.values()) == {1}
    for job_id in jobs:
        job = ledger.job(job_id)
        done = [task.task_id for task in job.stages if task.status.is_committed]
        assert sorted(done) == sorted(task for task in commits if task.startswith(job_id))
        assert done == [t.task_id for t in job.stages][: len(done)], "no stage before its turn"
        happened = Counter(str(e.type) for e in ledger.events(job_id, limit=10_000))
        assert happened["stage.succeeded"] == len(done)
    with ledger._connection.client() as client:
        names = ["leases", *(f"{kind}:{q}" for kind in ("ready", "delayed") for q in Queue)]
        assert [client.zcard(f"{ledger.namespace}:{name}") for name in names] == [0] * 5
        indexed = [
            client.zcard(f"{ledger.namespace}:jobs:status:{status}")
            for status in ("queued", "running", "succeeded", "failed", "cancelled")
        ]
    assert indexed[:2] == [0, 0]
    assert sum(indexed) == JOBS
