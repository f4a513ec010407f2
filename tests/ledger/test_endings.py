"""How attempts and jobs end other than well: fenced, failed, crashed, cancelled, reaped, retried."""

import itertools
import threading
import time
from collections.abc import Callable

import pytest
from celery import Celery

from loco.contracts.errors import Conflict, InvalidRequest, NotFound
from loco.contracts.jobs import Checkpoint, Failure, JobStatus, StageStatus
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Claim, CommitAnswer, Hint, Ledger, Renewal, broker_prefix
from loco.queue.celery_app import send_hint

pytestmark = pytest.mark.redis

Specs = Callable[..., JobSpec]
Connect = Callable[..., Ledger]

nonces = (f"nonce-{i}" for i in itertools.count())


def take(ledger: Ledger, queue: Queue = Queue.CPU) -> Claim:
    claim = ledger.claim(queue, worker_id="worker-1", nonce=next(nonces))
    assert claim is not None
    return claim


def nothing_ready(ledger: Ledger, queue: Queue = Queue.CPU) -> bool:
    return ledger.claim(queue, worker_id="worker-1", nonce=next(nonces)) is None


def commit(ledger: Ledger, claim: Claim) -> CommitAnswer:
    return ledger.commit(
        claim.task_id, claim.token, result={}, artifacts=(), fingerprint=claim.task_id
    )


def failure(claim: Claim, code: str = "bad_data") -> Failure:
    return Failure(
        code=code,
        message=f"{code} it is.",
        hint="Mend it.",
        stage=claim.stage,
        attempt=claim.attempt,
        user_fault=True,
    )


def statuses(ledger: Ledger, job_id: str) -> list[str]:
    return [str(task.status) for task in ledger.job(job_id).stages]


def types(ledger: Ledger, job_id: str) -> list[str]:
    events = ledger.events(job_id, limit=1000)
    return [f"{e.type} {e.stage}" if e.stage else e.type for e in events]


def left_behind(ledger: Ledger) -> list[str]:
    """What still waits or is leased, in any queue."""
    tables = ["leases", *(f"{kind}:{q}" for kind in ("ready", "delayed") for q in Queue)]
    with ledger._connection.client() as client:
        return [item for t in tables for item in client.zrange(f"{ledger.namespace}:{t}", 0, -1)]


def test_a_superseded_attempt_changes_nothing(ledger: Ledger, spec: Specs) -> None:
    job, _ = ledger.submit(spec())
    old = take(ledger)
    ledger.release(old.task_id, old.token)
    new = take(ledger)
    before, happened = ledger.job(job.id), types(ledger, job.id)
    checkpoint = Checkpoint(path="c/1", step=1)
    assert commit(ledger, old) is CommitAnswer.STALE
    assert ledger.renew(old.task_id, old.token) is Renewal.LOST
    for refused in (
        ledger.progress(old.task_id, old.token, Progress(step=1)),
        ledger.log(old.task_id, old.token, "still here"),
        ledger.checkpoint(old.task_id, old.token, checkpoint),
        ledger.fail(old.task_id, old.token, failure(old), retryable=False),
        ledger.crash(old.task_id, old.token, failure(old)),
        ledger.release(old.task_id, old.token),
        ledger.cancelled(old.task_id, old.token),
    ):
        assert refused is False
    assert ledger.job(job.id) == before
    assert types(ledger, job.id) == happened
    assert commit(ledger, new) is CommitAnswer.NEXT
    assert commit(ledger, old) is CommitAnswer.STALE


class TestFail:
    def test_for_good_ends_the_job(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        assert ledger.fail(claim.task_id, claim.token, failure(claim), retryable=False)
        job = ledger.job(job.id)
        assert (job.status, job.error) == (JobStatus.FAILED, failure(claim))
        assert job.finished_at is not None
        assert job.stages[0].error == failure(claim)
        assert statuses(ledger, job.id) == ["failed", *["pending"] * 4]
        last = ledger.events(job.id)[-2:]
        assert [e.type for e in last] == ["stage.failed", "job.failed"]
        assert all(e.data["error"]["code"] == "bad_data" for e in last)
        assert left_behind(ledger) == []

    def test_retries_with_growing_pauses_then_ends(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(retries=2, retry_backoff=0.5)
        job, _ = ledger.submit(spec())
        pauses = []
        for retry in (1, 2):
            claim = take(ledger)
            failed_at = time.monotonic()
            ledger.fail(claim.task_id, claim.token, failure(claim, "hiccup"), retryable=True)
            task = ledger.task(claim.task_id)
            assert (task.status, task.crashes) == (StageStatus.QUEUED, 0)
            assert task.error is not None, "who waits should see why"
            assert nothing_ready(ledger)
            event = ledger.events(job.id, limit=1000)[-1]
            assert (event.type, event.data["retry"]) == ("stage.retry", retry)
            pauses.append(event.data["pause_seconds"])
            while not (hints := ledger.reap()):
                assert time.monotonic() < failed_at + 30
                time.sleep(0.01)
            assert time.monotonic() - failed_at > pauses[-1] - 0.01
            assert hints == [Hint(job_id=job.id, stage=Stage.PREPARE)]
        assert pauses == [0.5, 1.0]
        claim = take(ledger)
        assert ledger.task(claim.task_id).error is None, "a new attempt starts clean"
        ledger.fail(claim.task_id, claim.token, failure(claim, "hiccup"), retryable=True)
        assert ledger.job(job.id).status is JobStatus.FAILED

    def test_due_retry_can_be_claimed_without_a_reaper(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(retry_backoff=0.01)
        ledger.submit(spec())
        claim = take(ledger)
        ledger.fail(claim.task_id, claim.token, failure(claim), retryable=True)
        time.sleep(0.02)
        assert take(ledger).attempt == 2


class TestCrash:
    def test_is_counted_and_then_fatal(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        for crashes in (1, 2):
            claim = take(ledger)
            assert ledger.crash(claim.task_id, claim.token, failure(claim, "killed"))
            task = ledger.task(claim.task_id)
            assert (task.status, task.crashes) == (StageStatus.QUEUED, crashes)
        claim = take(ledger)
        ledger.crash(claim.task_id, claim.token, failure(claim, "killed"))
        job = ledger.job(job.id)
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert job.error.code == "worker_crashed"
        assert job.error.message.startswith("killed it is. Crash 3 of 3")
        assert (job.error.attempt, job.error.hint, job.error.stage) == (3, "Mend it.", "prepare")
        assert left_behind(ledger) == []

    def test_checkpoint_progress_renews_the_budget(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        for step in range(1, 6):
            claim = take(ledger)
            checkpoint = Checkpoint(path=f"c/{step}", step=step)
            ledger.checkpoint(claim.task_id, claim.token, checkpoint)
            ledger.crash(claim.task_id, claim.token, failure(claim))
            assert ledger.task(claim.task_id).crashes == 1
        claim = take(ledger)
        assert [c.step for c in ledger.task(claim.task_id).checkpoints] == [5, 4, 3, 2, 1]

    def test_a_repeated_step_is_no_progress(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        for _ in range(4):
            if ledger.job(job.id).is_terminal:
                break
            claim = take(ledger)
            ledger.checkpoint(claim.task_id, claim.token, Checkpoint(path="c/5", step=5))
            ledger.crash(claim.task_id, claim.token, failure(claim))
        # the first reaches step 5 and starts the count at 1; two more spend the budget of 3
        assert ledger.job(job.id).status is JobStatus.FAILED
        assert ledger.job(job.id).stages[0].attempt == 3


class TestCancel:
    def test_while_queued_is_at_once(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        job = ledger.cancel(job.id)
        assert (job.status, job.cancel_requested) == (JobStatus.CANCELLED, True)
        assert statuses(ledger, job.id) == ["cancelled"] * 5
        assert types(ledger, job.id)[-1] == "job.cancelled"
        assert nothing_ready(ledger)
        assert left_behind(ledger) == []

    def test_while_waiting_for_a_retry_is_at_once(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.fail(claim.task_id, claim.token, failure(claim), retryable=True)
        assert ledger.cancel(job.id).status is JobStatus.CANCELLED
        assert left_behind(ledger) == []

    def test_between_stages_is_at_once(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        commit(ledger, take(ledger))
        ledger.cancel(job.id)
        assert statuses(ledger, job.id) == ["succeeded", *["cancelled"] * 4]
        assert nothing_ready(ledger, Queue.GPU)

    def test_while_running_waits_for_the_worker(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        job = ledger.cancel(job.id)
        assert (job.status, job.cancel_requested) == (JobStatus.RUNNING, True)
        assert statuses(ledger, job.id) == ["running", *["cancelled"] * 4]
        assert ledger.cancel(job.id) == job, "a second cancel changes nothing"
        assert types(ledger, job.id).count("job.cancel_requested prepare") == 1
        assert ledger.renew(claim.task_id, claim.token) is Renewal.CANCEL
        checkpoint = Checkpoint(path="c/3", step=3)
        assert ledger.checkpoint(claim.task_id, claim.token, checkpoint)
        assert ledger.cancelled(claim.task_id, claim.token)
        job = ledger.job(job.id)
        assert job.status is JobStatus.CANCELLED
        assert statuses(ledger, job.id) == ["cancelled"] * 5
        assert job.stages[0].checkpoints == (checkpoint,)
        assert left_behind(ledger) == []

    def test_a_commit_that_comes_after_it_stands(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.cancel(job.id)
        assert commit(ledger, claim) is CommitAnswer.DONE
        assert ledger.job(job.id).status is JobStatus.CANCELLED
        assert statuses(ledger, job.id) == ["succeeded", *["cancelled"] * 4]
        assert nothing_ready(ledger, Queue.GPU)

    def test_too_late_for_the_last_stage(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec(stages=("prepare",)))
        claim = take(ledger)
        ledger.cancel(job.id)
        assert commit(ledger, claim) is CommitAnswer.DONE
        assert ledger.job(job.id).status is JobStatus.SUCCEEDED

    @pytest.mark.parametrize("ending", ["fail", "crash", "release"])
    def test_whatever_ends_the_attempt_ends_the_job(
        self, ledger: Ledger, spec: Specs, ending: str
    ) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.cancel(job.id)
        if ending == "fail":
            ledger.fail(claim.task_id, claim.token, failure(claim), retryable=True)
        elif ending == "crash":
            ledger.crash(claim.task_id, claim.token, failure(claim))
        else:
            ledger.release(claim.task_id, claim.token)
        assert ledger.job(job.id).status is JobStatus.CANCELLED
        assert left_behind(ledger) == []

    def test_a_silent_worker_does_not_hold_it_up(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(lease=0.02)
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.cancel(job.id)
        time.sleep(0.03)
        assert ledger.reap() == []
        assert ledger.job(job.id).status is JobStatus.CANCELLED
        assert commit(ledger, claim) is CommitAnswer.STALE

    def test_nobody_cancelled(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        assert not ledger.cancelled(claim.task_id, claim.token)
        assert ledger.task(claim.task_id).status is StageStatus.RUNNING

    def test_ended_jobs_stay_as_they_are(self, ledger: Ledger, spec: Specs) -> None:
        done, _ = ledger.submit(spec(stages=("prepare",)))
        commit(ledger, take(ledger))
        failed, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.fail(claim.task_id, claim.token, failure(claim), retryable=False)
        for job_id in (done.id, failed.id):
            before = ledger.job(job_id)
            assert ledger.cancel(job_id) == before


class TestRetry:
    def test_goes_on_from_the_failed_stage(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        commit(ledger, take(ledger))
        claim = take(ledger, Queue.GPU)
        checkpoint = Checkpoint(path="c/9", step=9)
        ledger.checkpoint(claim.task_id, claim.token, checkpoint)
        ledger.fail(claim.task_id, claim.token, failure(claim), retryable=False)
        job = ledger.retry(job.id)
        assert (job.status, job.error, job.finished_at) == (JobStatus.QUEUED, None, None)
        assert statuses(ledger, job.id) == ["succeeded", "queued", *["pending"] * 3]
        again = take(ledger, Queue.GPU)
        assert (again.stage, again.attempt) == (Stage.TRAIN, 2)
        task = ledger.task(again.task_id)
        assert (task.checkpoints, task.error, task.crashes) == ((checkpoint,), None, 0)
        assert commit(ledger, claim) is CommitAnswer.STALE
        assert commit(ledger, again) is CommitAnswer.NEXT

    def test_a_cancelled_job_goes_on(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        ledger.cancel(job.id)
        ledger.cancelled(claim.task_id, claim.token)
        job = ledger.retry(job.id)
        assert not job.cancel_requested
        assert statuses(ledger, job.id) == ["queued", *["pending"] * 4]
        for stage in Stage:
            commit(ledger, take(ledger, stage.queue))
        assert ledger.job(job.id).status is JobStatus.SUCCEEDED
        assert [j.id for j in ledger.jobs(status=JobStatus.SUCCEEDED)[0]] == [job.id]
        assert ledger.jobs(status=JobStatus.CANCELLED)[0] == []

    def test_gives_the_whole_crash_budget_again(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(crash_budget=2)
        job, _ = ledger.submit(spec())
        for _ in range(2):
            for _ in range(2):
                claim = take(ledger)
                ledger.crash(claim.task_id, claim.token, failure(claim))
            assert ledger.job(job.id).status is JobStatus.FAILED
            ledger.retry(job.id)
        assert ledger.job(job.id).stages[0].attempt == 4

    def test_only_failed_and_cancelled_jobs(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec(stages=("prepare",)))
        with pytest.raises(Conflict, match="queued"):
            ledger.retry(job.id)
        claim = take(ledger)
        with pytest.raises(Conflict, match="running"):
            ledger.retry(job.id)
        commit(ledger, claim)
        with pytest.raises(Conflict, match="succeeded"):
            ledger.retry(job.id)


class TestReap:
    def test_takes_the_stage_of_a_silent_worker(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(lease=0.02)
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        time.sleep(0.03)
        assert ledger.reap() == [Hint(job_id=job.id, stage=Stage.PREPARE)]
        task = ledger.task(claim.task_id)
        assert (task.status, task.crashes) == (StageStatus.QUEUED, 1)
        assert task.error is not None
        assert task.error.code == "worker_crashed"
        assert "worker-1" in task.error.message
        assert ledger.renew(claim.task_id, claim.token) is Renewal.LOST
        assert ledger.reap() == []

    def test_gives_up_after_the_budget(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(lease=0.01, crash_budget=2)
        job, _ = ledger.submit(spec())
        for _ in range(2):
            take(ledger)
            time.sleep(0.02)
            ledger.reap()
        job = ledger.job(job.id)
        assert job.status is JobStatus.FAILED
        assert job.error is not None
        assert (job.error.code, job.error.attempt) == ("worker_crashed", 2)
        assert ledger.reap() == []

    def test_leaves_renewed_leases_alone(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(lease=2)
        ledger.submit(spec())
        claim = take(ledger)
        for _ in range(9):
            time.sleep(0.25)
            assert ledger.renew(claim.task_id, claim.token) is Renewal.OK
            ledger.reap()
        assert ledger.task(claim.task_id).status is StageStatus.RUNNING

    def test_an_expired_lease_can_be_renewed_until_it_is_reaped(
        self, connect: Connect, spec: Specs
    ) -> None:
        ledger = connect(lease=0.02)
        ledger.submit(spec())
        claim = take(ledger)
        time.sleep(0.03)
        assert connect(lease=60).renew(claim.task_id, claim.token) is Renewal.OK
        ledger.reap()
        assert ledger.task(claim.task_id).status is StageStatus.RUNNING

    def test_many_at_once_count_one_crash_each(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(lease=0.01, rehint=60)
        wanted = spec()
        jobs = [ledger.submit(wanted)[0].id for _ in range(10)]
        for _ in jobs:
            take(ledger)
        time.sleep(0.02)
        hints: list[Hint] = []
        threads = [threading.Thread(target=lambda: hints.extend(ledger.reap())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(h.job_id for h in hints) == sorted(jobs)
        assert {ledger.job(j).stages[0].crashes for j in jobs} == {1}

    def test_hints_again_after_a_while(self, connect: Connect, spec: Specs) -> None:
        ledger = connect(rehint=1)
        job, _ = ledger.submit(spec())
        assert ledger.reap() == [], "whoever submitted sends the first hint"
        time.sleep(1.02)
        assert ledger.reap() == [Hint(job_id=job.id, stage=Stage.PREPARE)]
        assert ledger.reap() == []

    def test_hints_no_more_than_messages_are_missing(
        self, connect: Connect, spec: Specs, app: Celery
    ) -> None:
        ledger = connect(rehint=0.01)
        jobs = [ledger.submit(spec())[0].id for _ in range(3)]
        assert send_hint(app, Hint(job_id=jobs[0], stage=Stage.PREPARE))
        with ledger._connection.client() as client:
            assert client.llen(broker_prefix(ledger.namespace) + Queue.CPU) == 1
        time.sleep(0.02)
        hints = ledger.reap()
        assert [h.job_id for h in hints] == jobs[:2], "three are ready, one message waits"
        for hint in hints:
            send_hint(app, hint)
        time.sleep(0.02)
        assert ledger.reap() == []


def test_a_pause_is_a_cancel_with_a_mark_that_a_retry_takes_off(
    ledger: Ledger, spec: Specs
) -> None:
    job, _ = ledger.submit(spec())
    claim = take(ledger)
    asked = ledger.cancel(job.id, pause=True)
    assert (asked.status, asked.paused, asked.cancel_requested) == (JobStatus.RUNNING, True, True)
    assert ledger.renew(claim.task_id, claim.token) is Renewal.CANCEL
    assert ledger.cancelled(claim.task_id, claim.token)
    stopped = ledger.job(job.id)
    assert (stopped.status, stopped.paused) == (JobStatus.CANCELLED, True)
    resumed = ledger.retry(job.id)
    assert (resumed.status, resumed.paused) == (JobStatus.QUEUED, False)
    assert take(ledger).job_id == job.id


def test_a_cancel_ends_a_pause_and_a_pause_no_cancel(ledger: Ledger, spec: Specs) -> None:
    job, _ = ledger.submit(spec())
    assert ledger.cancel(job.id, pause=True).paused
    assert not ledger.cancel(job.id).paused, "it had ended, paused"
    job, _ = ledger.submit(spec())
    take(ledger)
    ledger.cancel(job.id)
    assert not ledger.cancel(job.id, pause=True).paused
    done, _ = ledger.submit(spec(stages=["prepare"]))
    commit(ledger, take(ledger))
    assert not ledger.cancel(done.id, pause=True).paused


def test_the_latest_events_are_read_backwards_page_by_page(ledger: Ledger, spec: Specs) -> None:
    job, _ = ledger.submit(spec())
    take(ledger)
    ledger.cancel(job.id)
    forward = ledger.events(job.id, limit=1000)
    assert len(forward) > 4
    backward = ledger.latest_events(job.id, limit=2)
    while more := ledger.latest_events(job.id, before=backward[-1].id, limit=2):
        backward += more
    assert backward == forward[::-1]
    with pytest.raises(NotFound):
        ledger.latest_events("20260101-000000-abcdef")
    with pytest.raises(InvalidRequest):
        ledger.latest_events(job.id, before="yesterday")
