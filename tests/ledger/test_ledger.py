"""The life of a job in the ledger, on a real server: accepted, claimed, committed, ended."""

import itertools
import re
import threading
from collections.abc import Callable

import pytest

from loco.contracts.artifacts import Artifact
from loco.contracts.errors import IdempotencyConflict, InvalidRequest, NotFound
from loco.contracts.jobs import Checkpoint, JobStatus, StageStatus
from loco.contracts.program_events import Progress
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Claim, CommitAnswer, Hint, Ledger, Renewal

pytestmark = pytest.mark.redis

Specs = Callable[..., JobSpec]


nonces = (f"nonce-{i}" for i in itertools.count())


def take(ledger: Ledger, queue: Queue = Queue.CPU, *, nonce: str | None = None) -> Claim:
    claim = ledger.claim(queue, worker_id="worker-1", nonce=nonce or next(nonces))
    assert claim is not None
    return claim


def commit(ledger: Ledger, claim: Claim, **more: object) -> CommitAnswer:
    fields = {"result": {"seconds": 1.0}, "artifacts": (), "fingerprint": claim.task_id, **more}
    return ledger.commit(claim.task_id, claim.token, **fields)


def statuses(ledger: Ledger, job_id: str) -> list[str]:
    return [str(task.status) for task in ledger.job(job_id).stages]


def types(ledger: Ledger, job_id: str) -> list[str]:
    events = ledger.events(job_id, limit=1000)
    return [f"{e.type} {e.stage}" if e.stage else e.type for e in events]


class TestSubmit:
    def test_queues_the_first_stage_and_keeps_the_spec(self, ledger: Ledger, spec: Specs) -> None:
        wanted = spec(seed=7)
        job, created = ledger.submit(wanted, priority=3, metadata={"run": "a/b"})
        assert created
        assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", job.id)
        assert job.id.startswith(f"{job.created_at:%Y%m%d-%H%M%S}-")
        assert job == ledger.job(job.id)
        assert job.spec == wanted
        assert (job.status, job.priority, job.metadata) == (JobStatus.QUEUED, 3, {"run": "a/b"})
        assert [t.task_id for t in job.stages] == [f"{job.id}-{s}" for s in Stage]
        assert statuses(ledger, job.id) == ["queued", *["pending"] * 4]
        assert types(ledger, job.id) == ["job.submitted", "job.queued", "stage.queued prepare"]

    def test_same_key_gives_the_same_job(self, ledger: Ledger, spec: Specs) -> None:
        first, created = ledger.submit(spec(), idempotency_key="k", request_digest="d")
        again, created_again = ledger.submit(spec(), idempotency_key="k", request_digest="d")
        assert (created, created_again) == (True, False)
        assert again == first
        assert ledger.accepted("k", "d") == first
        assert len(ledger.jobs()[0]) == 1

    def test_same_key_with_another_request_is_refused(self, ledger: Ledger, spec: Specs) -> None:
        first, _ = ledger.submit(spec(), idempotency_key="k", request_digest="d")
        with pytest.raises(IdempotencyConflict, match=first.id):
            ledger.submit(spec(), idempotency_key="k", request_digest="other")
        with pytest.raises(IdempotencyConflict, match=first.id):
            ledger.accepted("k", "other")
        assert ledger.accepted("unused", "d") is None

    def test_without_a_key_every_submit_is_a_job(self, ledger: Ledger, spec: Specs) -> None:
        ids = {ledger.submit(spec())[0].id for _ in range(20)}
        assert len(ids) == 20

    def test_ids_stay_unique_when_the_random_part_repeats(
        self, ledger: Ledger, spec: Specs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("secrets.randbelow", lambda _: 16**6 - 1)
        ids = [ledger.submit(spec())[0].id for _ in range(3)]
        assert len(set(ids)) == 3
        assert ids[0].endswith("-ffffff")

    def test_one_job_comes_of_many_submits_at_once(self, ledger: Ledger, spec: Specs) -> None:
        wanted, answers = spec(), []

        def submit() -> None:
            answers.append(ledger.submit(wanted, idempotency_key="k", request_digest="d"))

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({job.id for job, _ in answers}) == 1
        assert sum(created for _, created in answers) == 1

    def test_unknown_ids_are_not_found(self, ledger: Ledger) -> None:
        for ask in (ledger.job, ledger.cancel, ledger.retry, ledger.events):
            with pytest.raises(NotFound, match="nope"):
                ask("nope")
        with pytest.raises(NotFound, match="nope-train"):
            ledger.task("nope-train")


class TestClaim:
    def test_starts_the_stage_and_the_job(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        assert (claim.job_id, claim.stage, claim.attempt) == (job.id, Stage.PREPARE, 1)
        assert claim.job == ledger.job(job.id)
        task = ledger.task(claim.task_id)
        assert (task.status, task.worker) == (StageStatus.RUNNING, "worker-1")
        assert task.started_at is not None
        assert claim.job.status is JobStatus.RUNNING
        assert claim.job.started_at == task.started_at

    def test_empty_queue_gives_nothing(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        assert ledger.claim(Queue.GPU, worker_id="w", nonce="n") is None
        take(ledger)
        assert ledger.claim(Queue.CPU, worker_id="w", nonce="n") is None

    def test_priority_goes_before_age(self, ledger: Ledger, spec: Specs) -> None:
        priorities = [0, -100, 100, 0, 5]
        jobs = [ledger.submit(spec(), priority=p)[0].id for p in priorities]
        order = [take(ledger).job_id for _ in jobs]
        assert order == [jobs[2], jobs[4], jobs[0], jobs[3], jobs[1]]

    def test_a_job_that_began_goes_before_a_later_one(self, ledger: Ledger, spec: Specs) -> None:
        first, _ = ledger.submit(spec())
        second, _ = ledger.submit(spec())
        for _ in range(2):
            commit(ledger, take(ledger))
        train = take(ledger, Queue.GPU)
        assert train.job_id == first.id
        commit(ledger, train)
        export = take(ledger, Queue.GPU)
        assert (export.job_id, export.stage) == (first.id, Stage.EXPORT)
        assert take(ledger, Queue.GPU).job_id == second.id

    def test_same_nonce_gives_the_same_attempt_while_it_runs(
        self, ledger: Ledger, spec: Specs
    ) -> None:
        ledger.submit(spec())
        ledger.submit(spec())
        first = take(ledger, nonce="n")
        again = take(ledger, nonce="n")
        assert (again.task_id, again.token, again.attempt) == (
            first.task_id,
            first.token,
            first.attempt,
        )
        assert types(ledger, first.job_id).count("stage.running prepare") == 1
        commit(ledger, first)
        assert take(ledger, nonce="n").task_id != first.task_id

    def test_each_stage_goes_to_one_of_many_workers(self, ledger: Ledger, spec: Specs) -> None:
        wanted = spec()
        jobs = {ledger.submit(wanted)[0].id for _ in range(30)}
        claims: list[Claim] = []

        def work(worker: int) -> None:
            for turn in range(100):
                name = f"worker-{worker}"
                claim = ledger.claim(Queue.CPU, worker_id=name, nonce=f"{name}-{turn}")
                if claim is None:
                    return
                claims.append(claim)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(claims) == 30
        assert {claim.job_id for claim in claims} == jobs
        assert len({claim.token for claim in claims}) == 30


class TestAttempt:
    def test_progress_log_and_checkpoints_are_kept(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        progress = Progress(step=2, total_steps=10, loss=0.5, percent=20)
        assert ledger.progress(claim.task_id, claim.token, progress)
        assert ledger.log(claim.task_id, claim.token, 'a "line" of a log: ü')
        for step in (5, 10):
            found = Checkpoint(path=f"math/runs/x/checkpoint-{step}", step=step)
            assert ledger.checkpoint(claim.task_id, claim.token, found)
        task = ledger.task(claim.task_id)
        assert task.progress == progress
        assert [c.step for c in task.checkpoints] == [10, 5]
        events = ledger.events(claim.job_id)[-4:]
        assert [e.type for e in events] == [
            "stage.progress",
            "stage.log",
            "stage.checkpoint",
            "stage.checkpoint",
        ]
        assert events[0].data == {"step": 2, "total_steps": 10, "loss": 0.5, "percent": 20.0}
        assert events[1].data == {"message": 'a "line" of a log: ü'}
        assert events[3].data == {"path": "math/runs/x/checkpoint-10", "step": 10}
        assert {e.stage for e in events} == {Stage.PREPARE}

    def test_the_newest_checkpoints_are_kept_once_each(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        for step in [*range(1, 14), 13]:
            ledger.checkpoint(claim.task_id, claim.token, Checkpoint(path=f"c/{step}", step=step))
        kept = [c.step for c in ledger.task(claim.task_id).checkpoints]
        assert kept == list(range(13, 3, -1))

    def test_renewal_is_ok_until_something_is_wanted(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        assert ledger.renew(claim.task_id, claim.token) is Renewal.OK
        assert ledger.renew(claim.task_id, claim.token + 1) is Renewal.LOST
        assert ledger.renew("no-such-task", claim.token) is Renewal.LOST
        ledger.drain("worker-1")
        assert ledger.renew(claim.task_id, claim.token) is Renewal.DRAIN
        ledger.cancel(claim.job_id)
        assert ledger.renew(claim.task_id, claim.token) is Renewal.CANCEL
        commit(ledger, claim)
        assert ledger.renew(claim.task_id, claim.token) is Renewal.LOST

    def test_release_gives_the_stage_back_to_its_place(self, ledger: Ledger, spec: Specs) -> None:
        first, _ = ledger.submit(spec())
        ledger.submit(spec())
        claim = take(ledger)
        assert ledger.release(claim.task_id, claim.token)
        task = ledger.task(claim.task_id)
        assert (task.status, task.crashes) == (StageStatus.QUEUED, 0)
        assert not ledger.release(claim.task_id, claim.token)
        again = take(ledger)
        assert (again.job_id, again.attempt) == (first.id, 2)
        assert again.token > claim.token

    def test_a_draining_worker_gets_nothing_new(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        ledger.drain("worker-1")
        assert ledger.claim(Queue.CPU, worker_id="worker-1", nonce="a") is None
        assert ledger.claim(Queue.CPU, worker_id="worker-2", nonce="b") is not None


class TestCommit:
    def test_runs_through_to_success(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        answers = []
        for stage in Stage:
            claim = take(ledger, stage.queue)
            assert claim.stage is stage
            answers.append(commit(ledger, claim, result={"stage": stage, "empty": [], "deep": {}}))
        assert answers == [CommitAnswer.NEXT] * 4 + [CommitAnswer.DONE]
        job = ledger.job(job.id)
        assert (job.status, job.is_terminal) == (JobStatus.SUCCEEDED, True)
        assert job.finished_at is not None
        assert {t.status for t in job.stages} == {StageStatus.SUCCEEDED}
        assert job.stages[0].result == {"stage": "prepare", "empty": [], "deep": {}}
        per_stage = [f"stage.{s} {stage}" for stage in Stage for s in ("running", "succeeded")]
        happened = types(ledger, job.id)
        assert [t for t in happened if "queued" not in t] == [
            "job.submitted",
            "job.running",
            *per_stage,
            "job.succeeded",
        ]
        assert happened.count("stage.queued export") == 1

    def test_keeps_artifacts_and_lists_them_for_publishing(
        self, ledger: Ledger, spec: Specs
    ) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        file = Artifact(
            name="training_data.jsonl",
            stage=Stage.PREPARE,
            path="math/runs/x/training_data.jsonl",
            size=2**40,
            sha256="0" * 64,
            media_type="application/jsonl",
        )
        commit(ledger, claim, artifacts=(file,))
        assert ledger.task(claim.task_id).artifacts == (file,)
        train = take(ledger, Queue.GPU)
        commit(ledger, train)
        assert ledger.unpublished() == [claim.task_id, train.task_id]
        ledger.published(claim.task_id)
        assert ledger.unpublished() == [train.task_id]

    def test_repeated_commit_changes_nothing(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        claim = take(ledger)
        assert commit(ledger, claim) is CommitAnswer.NEXT
        before = ledger.job(job.id)
        assert commit(ledger, claim, result={"other": 1}) is CommitAnswer.ALREADY
        assert ledger.job(job.id) == before
        take(ledger, Queue.GPU)
        assert ledger.claim(Queue.GPU, worker_id="w", nonce="other") is None

    def test_can_be_reused_by_fingerprint(self, ledger: Ledger, spec: Specs) -> None:
        first, _ = ledger.submit(spec())
        claim = take(ledger)
        assert ledger.committed("abc") is None
        commit(ledger, claim, fingerprint="abc", result={"rows": 3})
        found = ledger.committed("abc")
        assert found is not None
        assert (found.task_id, found.result) == (claim.task_id, {"rows": 3})

        second, _ = ledger.submit(spec())
        again = take(ledger)
        answer = commit(
            ledger, again, fingerprint="abc", result={"rows": 3}, reused_from=found.job_id
        )
        assert answer is CommitAnswer.NEXT
        task = ledger.task(again.task_id)
        assert (task.status, task.reused_from) == (StageStatus.REUSED, first.id)
        assert "stage.reused prepare" in types(ledger, second.id)
        original = ledger.committed("abc")
        assert original is not None
        assert original.job_id == first.id, "a reused stage must not stand in for the one that ran"
        assert commit(ledger, again) is CommitAnswer.ALREADY

    def test_newest_is_by_adapter_profile_and_stage(self, ledger: Ledger, spec: Specs) -> None:
        first, _ = ledger.submit(spec())
        commit(ledger, take(ledger))
        second, _ = ledger.submit(spec())
        assert ledger.newest("math", "tiny", Stage.PREPARE) == first.id
        commit(ledger, take(ledger))
        assert ledger.newest("math", "tiny", Stage.PREPARE) == second.id
        assert ledger.newest("math", "tiny", Stage.TRAIN) is None
        assert ledger.newest("math", "default", Stage.PREPARE) is None

    def test_outputs_follow_the_jobs_it_builds_on(self, ledger: Ledger, spec: Specs) -> None:
        one, _ = ledger.submit(spec(stages=("prepare", "train")))
        commit(ledger, take(ledger))
        commit(ledger, take(ledger, Queue.GPU))
        two, _ = ledger.submit(spec(stages=("train",), from_job=one.id))
        commit(ledger, take(ledger, Queue.GPU))
        three, _ = ledger.submit(spec(stages=("export",), from_job=two.id))
        outputs = ledger.outputs(three)
        assert {s: t.job_id for s, t in outputs.items()} == {
            Stage.PREPARE: one.id,
            Stage.TRAIN: two.id,
        }


class TestPages:
    def test_walk_newest_first(self, ledger: Ledger, spec: Specs) -> None:
        wanted = spec()
        ids = [ledger.submit(wanted)[0].id for _ in range(7)][::-1]
        page, more = ledger.jobs(limit=3)
        assert ([j.id for j in page], more) == (ids[:3], True)
        page, more = ledger.jobs(limit=3, after=ids[2])
        assert ([j.id for j in page], more) == (ids[3:6], True)
        page, more = ledger.jobs(limit=3, after=ids[5])
        assert ([j.id for j in page], more) == (ids[6:], False)
        assert ledger.jobs(limit=7)[1] is False
        assert ledger.jobs(after=ids[6]) == ([], False)

    def test_filters_combine(self, ledger: Ledger, spec: Specs) -> None:
        wanted = spec()
        other = wanted.model_copy(update={"adapter": "geometry"})
        jobs = [ledger.submit(s)[0].id for s in (wanted, other) * 3]
        for job_id in jobs[:3]:
            ledger.cancel(job_id)

        def found(**filters: object) -> list[str]:
            ids: list[str] = []
            while True:
                page, more = ledger.jobs(limit=1, after=ids[-1] if ids else None, **filters)
                ids += [job.id for job in page]
                if not more:
                    return ids

        assert found() == jobs[::-1]
        assert found(status=JobStatus.QUEUED) == jobs[:2:-1]
        assert found(status=JobStatus.CANCELLED) == jobs[2::-1]
        assert found(adapter="geometry") == jobs[::-2]
        assert found(adapter="math", status=JobStatus.CANCELLED) == [jobs[2], jobs[0]]
        assert found(adapter="nobody") == []

    def test_unknown_cursor_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(InvalidRequest, match="nope") as caught:
            ledger.jobs(after="nope")
        assert caught.value.param == "after"


class TestEvents:
    def test_resume_after_an_id(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        all_events = ledger.events(job.id)
        assert [e.type for e in all_events] == ["job.submitted", "job.queued", "stage.queued"]
        assert all_events[0].data["stages"] == [str(s) for s in Stage]
        assert ledger.events(job.id, limit=1) == all_events[:1]
        assert ledger.events(job.id, after=all_events[0].id) == all_events[1:]
        assert ledger.events(job.id, after=all_events[-1].id) == []

    def test_an_id_of_another_shape_is_refused(self, ledger: Ledger, spec: Specs) -> None:
        job, _ = ledger.submit(spec())
        for wrong in ("", "x", "-", "+", "1-", "(1", "1-2-3"):
            with pytest.raises(InvalidRequest):
                ledger.events(job.id, after=wrong)

    def test_the_stream_stays_bounded(self, ledger: Ledger, spec: Specs) -> None:
        ledger.submit(spec())
        claim = take(ledger)
        with ledger._connection.client() as client:  # a flood, faster than through the ledger
            pipeline = client.pipeline(transaction=False)
            fields = {"type": "stage.log", "at": "0", "stage": "prepare", "data": "{}"}
            for _ in range(12_000):
                pipeline.xadd(ledger.events_key(claim.job_id), fields)
            pipeline.execute()
            ledger.log(claim.task_id, claim.token, "last")
            assert 10_000 <= client.xlen(ledger.events_key(claim.job_id)) < 10_200


def test_a_hint_travels_on_the_queue_of_its_stage() -> None:
    assert Hint(job_id="j", stage=Stage.EXPORT).queue is Queue.GPU
    assert Hint(job_id="j", stage=Stage.EVAL).queue is Queue.CPU
