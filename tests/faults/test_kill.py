"""Killing parts of a worker: the stage goes on from its checkpoint and nothing is left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Stage
from loco.ledger.ledger import Hint, Ledger
from loco.queue.celery_app import celery_app, close_queue, send_hint
from loco.recipes.resolve import resolve
from loco.settings import Settings, Timings

pytestmark = [pytest.mark.redis, pytest.mark.slow]

WORKER = Path(__file__).parents[1] / "programs" / "loop_worker.py"
TIMINGS = Timings(lease=3, renew=0.3, reap=0.5, stale_child=2, watchdog=2.5, stop_grace=3, rehint=1)


class Farm:
    """Real worker processes on one ledger."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.ledger = Ledger.connect(
            str(settings.redis_url), namespace=settings.namespace, timings=settings.timings
        )
        self._sender = celery_app(settings)
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **self.settings.environment(), "LOOP_STEP_SECONDS": "0.3"}
        with (self._folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, str(WORKER)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._workers.append(worker)
        return worker

    def submit(self) -> Job:
        request = JobRequest(adapter="math", profile="tiny", stages=(Stage.PREPARE,))
        job, _ = self.ledger.submit(resolve(self.settings.adapters_dir, request))
        send_hint(self._sender, Hint(job_id=job.id, stage=Stage.PREPARE))
        return job

    def task(self, job: Job) -> Task:
        return self.ledger.job(job.id).stages[0]

    def newest_attempt(self, job: Job) -> Path:
        runs = self.settings.adapters_dir / "math" / "runs" / job.id / Stage.PREPARE
        return max(runs.iterdir(), key=lambda p: int(p.name[1:]))

    def run_to_a_checkpoint(self, job: Job) -> int:
        """Waits until the stage can be resumed; returns its program's process ID."""
        wait_for(lambda: len(self.task(job).checkpoints) >= 1)
        return int((self.newest_attempt(job) / "pid").read_text())

    def assert_resumed(self, job: Job) -> None:
        wait_for(lambda: self.ledger.job(job.id).is_terminal)
        assert self.ledger.job(job.id).status is JobStatus.SUCCEEDED
        resumed = json.loads((self.newest_attempt(job) / "resumed.json").read_text())
        assert resumed["from"] >= 2

    def close(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):  # it may have ended in the test
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.ledger.close()
        close_queue(self._sender)


@pytest.fixture
def farm(redis_url: str, namespace: str, adapters_dir: Path, tmp_path: Path) -> Iterator[Farm]:
    (adapters_dir / "math" / "eval_dataset.jsonl").write_text("{}\n")
    settings = Settings(
        pass_env=("LOOP_STEP_SECONDS",),
        data_dir=tmp_path / "data",
        adapters_dir=adapters_dir,
        redis_url=redis_url,
        namespace=namespace,
        timings=TIMINGS,
    )
    farm = Farm(settings, tmp_path)
    yield farm
    farm.close()


def wait_for(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killing_the_program_resumes_at_once(farm: Farm) -> None:
    farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    os.kill(pid, signal.SIGKILL)
    farm.assert_resumed(job)
    [retry] = [e for e in farm.ledger.events(job.id, limit=1000) if e.type == "stage.retry"]
    assert "SIGKILL" in retry.data["error"]["message"]  # no lease had to run out
    assert farm.task(job).crashes == 0  # checkpoints since then cleared the count


def test_killing_the_main_process_takes_its_children_along_and_another_worker_resumes(
    farm: Farm,
) -> None:
    worker = farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    family = [pid, *children(worker.pid)]
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_for(lambda: not any(map(alive, family)), seconds=5)
    farm.start_worker()
    farm.assert_resumed(job)


def test_killing_the_pool_child_takes_the_program_along_and_the_worker_resumes(farm: Farm) -> None:
    worker = farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    [pool_child] = [c for c in children(worker.pid) if pid in children(c)]
    os.kill(pool_child, signal.SIGKILL)
    wait_for(lambda: not alive(pid), seconds=5)
    farm.assert_resumed(job)


def test_a_replaced_pool_child_dies_with_its_worker_too(farm: Farm) -> None:
    worker = farm.start_worker()
    job = farm.submit()
    first = farm.run_to_a_checkpoint(job)
    before = farm.newest_attempt(job)
    [pool_child] = [c for c in children(worker.pid) if first in children(c)]
    os.kill(pool_child, signal.SIGKILL)
    # the ledger counts the attempt before its folder is made
    wait_for(lambda: farm.newest_attempt(job) != before)
    wait_for(lambda: (farm.newest_attempt(job) / "pid").exists())
    second = int((farm.newest_attempt(job) / "pid").read_text())
    assert farm.task(job).attempt == 2
    assert second != first
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    wait_for(lambda: not alive(second), seconds=5)


def test_freezing_the_supervisor_ends_the_program_by_its_watchdog(farm: Farm) -> None:
    worker = farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    [pool_child] = [c for c in children(worker.pid) if pid in children(c)]
    os.kill(pool_child, signal.SIGSTOP)
    wait_for(lambda: not alive(pid), seconds=TIMINGS.watchdog + 3)
    farm.start_worker()
    farm.assert_resumed(job)
    os.kill(pool_child, signal.SIGCONT)


def test_sigterm_drains_and_another_worker_goes_on(farm: Farm) -> None:
    worker = farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    worker.terminate()
    assert worker.wait(TIMINGS.renew + TIMINGS.stop_grace + 5) == 0
    assert not alive(pid)
    task = farm.task(job)
    assert task.status is StageStatus.QUEUED
    assert task.crashes == 0
    farm.start_worker()
    farm.assert_resumed(job)


def test_cancel_leaves_no_process_and_a_resumable_checkpoint(farm: Farm) -> None:
    farm.start_worker()
    job = farm.submit()
    pid = farm.run_to_a_checkpoint(job)
    farm.ledger.cancel(job.id)
    wait_for(lambda: farm.ledger.job(job.id).is_terminal)
    assert farm.ledger.job(job.id).status is JobStatus.CANCELLED
    assert not alive(pid)
    farm.ledger.retry(job.id)
    farm.assert_resumed(job)
