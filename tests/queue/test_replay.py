"""A job once more: the spec and the bytes of then, whatever lies there now."""

import uuid
from collections.abc import Callable

import pytest
from celery import Celery

from loco.contracts.artifacts import describe
from loco.contracts.errors import Conflict, IdempotencyConflict, NotFound
from loco.contracts.jobs import Job
from loco.contracts.requests import JobRequest, ReplayRequest
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger
from loco.queue.replay import replay
from loco.queue.submission import submit
from loco.recipes.resolve import resolve
from loco.settings import Settings

pytestmark = pytest.mark.redis

Replay = Callable[..., Job]


@pytest.fixture
def first(ledger: Ledger, app: Celery, settings: Settings) -> Job:
    """A job that reads a file, accepted."""
    (settings.adapters_dir / "math" / "mine.jsonl").write_text("{}\n")
    source = {"kind": "jsonl", "path": "mine.jsonl"}
    request = JobRequest(adapter="math", profile="tiny", prepare={"source": source}, seed=5)
    return submit(ledger, app, settings, request)[0]


@pytest.fixture
def again(ledger: Ledger, app: Celery, settings: Settings) -> Replay:
    """Replays a job: `again(job, promote=True, key="k")`."""

    def again(job_id: str, *, key: str | None = None, **fields: object) -> Job:
        request = ReplayRequest.model_validate(fields)
        return replay(ledger, app, settings, job_id, request, idempotency_key=key)[0]

    return again


def test_the_spec_and_the_inputs_of_then(first: Job, again: Replay, settings: Settings) -> None:
    math = settings.adapters_dir / "math"
    for name in ("mine.jsonl", "adapter.yaml", "eval_dataset.jsonl"):
        (math / name).unlink()
    new = again(first.id, priority=3, metadata={"why": "check"})
    assert new.id != first.id
    assert (new.priority, new.metadata) == (3, {"why": "check"})
    assert new.spec.inputs == first.spec.inputs
    assert new.spec.replay_of == first.id
    assert not new.spec.reuse
    assert new.spec.eval.gate.policy == "never"
    assert new.spec.place == f"replays/{first.id}"
    expected = first.spec.model_dump(exclude={"reuse", "replay_of", "place", "eval"})
    assert new.spec.model_dump(exclude={"reuse", "replay_of", "place", "eval"}) == expected


def test_the_gate_decides_only_when_asked(first: Job, again: Replay) -> None:
    new = again(first.id, promote=True)
    assert new.spec.eval == first.spec.eval
    assert new.spec.place == first.spec.place


def test_a_repeated_key_is_the_same_replay(first: Job, again: Replay, settings: Settings) -> None:
    new = again(first.id, key="k")
    (settings.adapters_dir / first.spec.inputs["mine.jsonl"].path).unlink()
    assert again(first.id, key="k") == new
    with pytest.raises(IdempotencyConflict):
        again(first.id, key="k", promote=True)


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_without_its_inputs_it_is_refused(
    first: Job, again: Replay, settings: Settings, ledger: Ledger, harm: str
) -> None:
    copy = settings.adapters_dir / first.spec.inputs["mine.jsonl"].path
    copy.chmod(0o644)
    copy.write_text("{1\n") if harm == "changed" else copy.unlink()
    with pytest.raises(Conflict, match=r"'mine\.jsonl' that job .* read is missing or changed"):
        again(first.id)
    assert len(ledger.jobs()[0]) == 1


def test_a_job_of_an_earlier_release_is_refused(
    again: Replay, ledger: Ledger, settings: Settings
) -> None:
    spec = resolve(settings.adapters_dir, JobRequest(adapter="math", profile="tiny"))
    old, _ = ledger.submit(spec)
    with pytest.raises(
        Conflict, match=r"content of adapter\.yaml, eval_dataset\.jsonl at that time"
    ) as caught:
        again(old.id)
    assert "loco submit math --profile tiny" in str(caught.value.hint)


def test_a_job_of_an_earlier_release_that_reads_no_file_is_refused_too(
    again: Replay, ledger: Ledger, settings: Settings, app: Celery
) -> None:
    built, _ = submit(ledger, app, settings, JobRequest(adapter="math", profile="tiny"))
    for stage in (Stage.PREPARE, Stage.TRAIN):
        claim = ledger.claim(stage.queue, worker_id="w", nonce=stage)
        assert claim is not None
        mark = uuid.uuid4().hex
        ledger.commit(claim.task_id, claim.token, result={}, artifacts=(), fingerprint=mark)
    request = JobRequest(adapter="math", profile="tiny", stages=(Stage.EXPORT,), from_job=built.id)
    old, _ = ledger.submit(resolve(settings.adapters_dir, request))
    with pytest.raises(Conflict, match=r"content of adapter\.yaml at that time"):
        again(old.id)


def test_an_unknown_job(again: Replay) -> None:
    with pytest.raises(NotFound):
        again("nope")


def test_later_jobs_do_not_build_on_a_replay(
    first: Job, again: Replay, ledger: Ledger, settings: Settings
) -> None:
    def commit(job: Job) -> None:
        claim = ledger.claim(Stage.PREPARE.queue, worker_id="w", nonce=uuid.uuid4().hex)
        assert claim is not None
        assert claim.job_id == job.id
        run = settings.adapters_dir / "math" / "runs" / job.id
        run.mkdir(parents=True)
        (run / "x").touch()
        file = describe(settings.adapters_dir, run / "x", name="x", stage=Stage.PREPARE)
        mark = uuid.uuid4().hex
        ledger.commit(claim.task_id, claim.token, result={}, artifacts=(file,), fingerprint=mark)

    commit(first)
    commit(again(first.id))
    assert ledger.newest("math", "tiny", Stage.PREPARE) == first.id


def test_a_job_that_builds_on_another_builds_on_it_again(
    ledger: Ledger, app: Celery, settings: Settings, again: Replay
) -> None:
    request = JobRequest(adapter="math", profile="tiny")
    built, _ = submit(ledger, app, settings, request)
    for stage in (Stage.PREPARE, Stage.TRAIN):
        claim = ledger.claim(stage.queue, worker_id="w", nonce=stage)
        assert claim is not None
        mark = uuid.uuid4().hex
        ledger.commit(claim.task_id, claim.token, result={}, artifacts=(), fingerprint=mark)
    request = JobRequest(adapter="math", profile="tiny", stages=(Stage.EXPORT,))
    export, _ = submit(ledger, app, settings, request)
    assert again(export.id).spec.from_job == built.id
