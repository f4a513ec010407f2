"""Sweeps: one prepare, trainings side by side, and only the best goes on; whoever dies in between."""

import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from live_api import Hands

from loco.contracts.errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound
from loco.contracts.jobs import Job, JobStatus
from loco.contracts.stages import Stage
from loco.contracts.sweeps import PointStatus, Sweep, SweepRequest
from loco.ledger.ledger import Claim, Ledger
from loco.queue import sweeps
from loco.queue.reaper import Reaper
from loco.queue.sweeps import advance, cancel_sweep, show_sweep, submit_sweep
from loco.settings import Settings

pytestmark = pytest.mark.redis

RATES = {"train.learning_rate": [1e-4, 2e-4, 4e-4]}
Sweeping = Callable[..., Sweep]


@pytest.fixture
def sweep(ledger: Ledger, app: Celery, settings: Settings) -> Sweeping:
    """Submits a sweep of math: `sweep(seeds=2, key="k")`."""

    def ask(*, key: str | None = None, owner: str = "local", **fields: object) -> Sweep:
        request = SweepRequest.model_validate(
            {"adapter": "math", "profile": "tiny", "grid": RATES} | fields
        )
        key = key or uuid.uuid4().hex
        return submit_sweep(ledger, app, settings, request, idempotency_key=key, owner=owner)[0]

    return ask


def trained(*losses: float, steps: int = 20) -> dict[str, Any]:
    """What a training's result says of its losses after 0, 1, … passes."""
    points = [{"step": n * 10, "epoch": n, "loss": loss} for n, loss in enumerate(losses)]
    return {
        "validation_loss": losses[-1] if losses else None,
        "validations": points,
        "last_loss": 0.3,
        "total_steps": steps,
    }


def run(hands: Hands, stage: Stage, result: dict[str, Any] | None = None) -> Claim:
    claim = hands.claim(stage)
    hands.commit(claim, result or {})
    return claim


def prepared(ledger: Ledger, hands: Hands, started: Sweep) -> Sweep:
    """The sweep with the jobs of its trainings."""
    run(hands, Stage.PREPARE)
    advance(ledger, started.id)
    return show_sweep(ledger, started.id)


def jobs(ledger: Ledger) -> list[Job]:
    return list(reversed(ledger.jobs(limit=100)[0]))


def test_one_prepare_then_a_training_a_point_then_the_best_goes_on(
    sweep: Sweeping, ledger: Ledger, hands: Hands
) -> None:
    started = sweep(metadata={"who": "me"}, priority=3)
    assert started.status is JobStatus.RUNNING
    [first] = jobs(ledger)
    assert first.id == started.prepare_job
    assert first.spec.stages == (Stage.PREPARE,)
    assert (first.spec.sweep, first.metadata, first.priority) == (started.id, {"who": "me"}, 3)
    assert [p.status for p in started.points] == [PointStatus.PENDING] * 3
    assert advance(ledger, started.id) == []

    training = prepared(ledger, hands, started)
    points = [ledger.job(str(p.job)) for p in training.points]
    assert [j.spec.train.learning_rate for j in points] == [1e-4, 2e-4, 4e-4]
    assert {j.spec.stages for j in points} == {(Stage.TRAIN,)}
    assert {j.spec.from_job for j in points} == {first.id}
    assert {j.spec.sweep for j in points} == {started.id}
    assert ledger.outputs(points[0]).keys() == {Stage.PREPARE}
    for loss in (0.9, 0.5, 0.7):
        run(hands, Stage.TRAIN, trained(2.0, loss))
    assert advance(ledger, started.id)[0].stage is Stage.TRAIN

    chosen = show_sweep(ledger, started.id)
    assert (chosen.status, chosen.best) == (JobStatus.RUNNING, 2)
    assert [p.rank for p in chosen.points] == [3, 1, 2]
    assert [p.validation_loss for p in chosen.points] == [0.9, 0.5, 0.7]
    final = ledger.job(str(chosen.final_job))
    assert final.spec.train == points[1].spec.train
    assert final.spec.stages == (Stage.TRAIN, Stage.EXPORT, Stage.REGISTER, Stage.EVAL)
    assert final.spec.from_job == first.id
    assert final.spec.reuse
    for stage in final.spec.stages:
        run(hands, stage)
    assert advance(ledger, started.id) == []
    ended = show_sweep(ledger, started.id)
    assert (ended.status, ended.error) == (JobStatus.SUCCEEDED, None)
    assert ended.finished_at is not None
    assert ledger.sweeps.open() == []
    assert len(jobs(ledger)) == 5


def test_later_jobs_build_on_the_best_and_on_no_other_point(
    sweep: Sweeping, ledger: Ledger, hands: Hands
) -> None:
    started = sweep()
    prepared(ledger, hands, started)
    for loss in (0.5, 0.6, 0.7):
        run(hands, Stage.TRAIN, trained(2.0, loss))
    assert ledger.newest("math", "tiny", Stage.TRAIN) is None
    advance(ledger, started.id)
    run(hands, Stage.TRAIN)
    assert ledger.newest("math", "tiny", Stage.TRAIN) == show_sweep(ledger, started.id).final_job


def test_a_prepare_job_that_is_gone_ends_it(sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
    started = sweep()
    run(hands, Stage.PREPARE)
    late = ledger.sweeps.sweep(started.id)
    with ledger._connection.client() as client:  # as `loco rm` does it
        client.delete(f"{ledger.namespace}:job:{started.prepare_job}")
    assert sweeps._train(ledger, late) == [], "no training on rows that are gone"
    advance(ledger, started.id)
    ended = show_sweep(ledger, started.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert "is gone" in ended.error.message


def test_without_export_it_ends_with_its_best(
    sweep: Sweeping, ledger: Ledger, hands: Hands
) -> None:
    started = sweep(export_best=False, rank_by="train_loss", prepare={"validation": 0})
    prepared(ledger, hands, started)
    for last in (0.9, 0.2, 0.7):
        run(hands, Stage.TRAIN, trained() | {"last_loss": last})
    assert advance(ledger, started.id) == []
    ended = show_sweep(ledger, started.id)
    assert (ended.status, ended.best, ended.final_job) == (JobStatus.SUCCEEDED, 2, None)


def test_without_sets_of_problems_the_best_is_not_measured(
    sweep: Sweeping, ledger: Ledger, hands: Hands, adapters_dir: Path
) -> None:
    (adapters_dir / "ft-x").mkdir()
    (adapters_dir / "ft-x" / "adapter.yaml").write_text(
        "{name: ft-x, description: Ours, base_model: smollm2-135m-instruct, model_name: ft-x, "
        "eval: {sets: {}}}"
    )
    rows = {"source": {"kind": "arithmetic"}}
    started = sweep(adapter="ft-x", profile="default", seeds=2, prepare=rows)
    prepared(ledger, hands, started)
    for loss in (0.9, 0.8, 0.5, 0.6, 0.7, 0.7):
        run(hands, Stage.TRAIN, trained(2.0, loss))
    advance(ledger, started.id)
    final = ledger.job(str(show_sweep(ledger, started.id).final_job))
    assert final.spec.stages == (Stage.TRAIN, Stage.EXPORT, Stage.REGISTER)


class TestGrid:
    def test_every_combination_and_seed_is_a_point(self, sweep: Sweeping, ledger: Ledger) -> None:
        grid = {"train.learning_rate": [1e-4, 2e-4], "train.lora.r": [8, 16]}
        started = sweep(grid=grid, seeds=2, train={"seed": 5, "lora": {"alpha": 64}})
        assert [tuple(p.overrides.values()) for p in started.points] == [
            *((1e-4, 8, 5), (1e-4, 8, 6), (1e-4, 16, 5), (1e-4, 16, 6)),
            *((2e-4, 8, 5), (2e-4, 8, 6), (2e-4, 16, 5), (2e-4, 16, 6)),
        ]
        trains = ledger.sweeps.plan(started.id).trains
        assert [(t.learning_rate, t.lora.r, t.seed) for t in trains] == [
            tuple(p.overrides.values()) for p in started.points
        ]
        assert {t.lora.alpha for t in trains} == {64}

    @pytest.mark.parametrize(
        ("fields", "param", "words"),
        [
            ({"grid": {}}, "grid", "1 points"),
            ({"grid": {"train.epochs": [3]}}, "grid", "1 points"),
            ({"grid": {"train.seed": [*range(13)]}, "seeds": 5}, "seeds", "both choose"),
            (
                {"grid": {"train.epochs": [1, 2, 3, 4, 5]}, "seeds": 13},
                "grid",
                "65 points .5 of train.epochs x 13 seeds",
            ),
            ({"grid": {"prepare.examples": [10, 20]}}, "prepare.examples", "one prepare"),
            (
                {"grid": {"export.quantization": ["Q8_0", "F16"]}},
                "export.quantization",
                "only the best",
            ),
            ({"grid": {"train": [{}, {}]}}, "train", "only vary fields of train"),
            (
                {"grid": {"train.lora": [{"r": 8}, {"r": 4}], "train.lora.r": [2]}},
                "train.lora.r",
                "part of",
            ),
            ({"grid": {"train.learning_rate": [1e-4, 5]}}, "train.learning_rate", r"got 5"),
            ({"grid": {"train.learningrate": [1, 2]}}, "train.learningrate", "unknown field"),
            ({"grid": {"train.base_model": ["a", "b"]}}, "train.base_model", "follows from"),
            ({"grid": {"train.epochs": [1, 1.0]}}, "train.epochs", "Points 1 and 2 are the same"),
            ({"prepare": {"validation": 0}}, "prepare.validation", "rank_by"),
        ],
    )
    def test_what_cannot_be_is_refused_at_once_by_its_field(
        self, sweep: Sweeping, ledger: Ledger, fields: dict[str, Any], param: str, words: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=words) as caught:
            sweep(**fields)
        assert caught.value.param == param
        assert caught.value.hint
        assert jobs(ledger) == []
        assert ledger.sweeps.open() == []


def test_a_field_without_its_section_is_named_in_full(sweep: Sweeping) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sweep(grid={"learning_rate": [1e-4, 2e-4]})
    assert caught.value.hint == "Did you mean train.learning_rate?"


def test_what_it_reads_is_frozen_when_it_is_accepted(
    sweep: Sweeping, ledger: Ledger, hands: Hands, settings: Settings
) -> None:
    math = settings.adapters_dir / "math"
    started = sweep()
    (math / "adapter.yaml").unlink()
    (math / "eval_dataset.jsonl").write_text("{}\n")
    training = prepared(ledger, hands, started)
    assert set(ledger.job(str(training.points[0].job)).spec.inputs) == {"adapter.yaml"}
    for loss in (0.5, 0.6, 0.7):
        run(hands, Stage.TRAIN, trained(2.0, loss))
    advance(ledger, started.id)
    final = ledger.job(str(show_sweep(ledger, started.id).final_job))
    first = ledger.job(str(started.prepare_job))
    name = "eval_dataset.jsonl"
    assert final.spec.inputs[name] == first.spec.inputs[name]


def test_a_repeated_request_is_the_same_sweep(sweep: Sweeping, ledger: Ledger) -> None:
    started = sweep(key="k")
    assert sweep(key="k") == started
    with pytest.raises(IdempotencyConflict, match=started.id):
        sweep(key="k", seeds=2)
    assert sweep(key="k", owner="anna").id != started.id
    assert len(jobs(ledger)) == 2


class TestCrashes:
    """Each step happens once, wherever the one who takes it dies."""

    def test_after_it_was_recorded(
        self, sweep: Sweeping, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweeps, "advance", _dies)
        with pytest.raises(KeyboardInterrupt):
            sweep(key="k")
        monkeypatch.undo()
        [sweep_id] = ledger.sweeps.open()
        assert show_sweep(ledger, sweep_id).prepare_job is None
        reaper(ledger).reap()
        assert sweep(key="k").prepare_job == jobs(ledger)[0].id

    def test_between_two_trainings_that_it_submits(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        started = sweep()
        run(hands, Stage.PREPARE)
        begin, calls = ledger.sweeps.begin, []

        def dies_at_the_second(*arguments, **named):
            calls.append(arguments)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return begin(*arguments, **named)

        monkeypatch.setattr(ledger.sweeps, "begin", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            advance(ledger, started.id)
        monkeypatch.undo()
        assert len(jobs(ledger)) == 2
        assert len(advance(ledger, started.id)) == 2, "hints for the two it made"
        assert len({p.job for p in show_sweep(ledger, started.id).points}) == 3
        assert len(jobs(ledger)) == 4

    def test_between_the_final_job_and_the_end(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for loss in (0.9, 0.5, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, loss))
        assert len(advance(ledger, started.id)) == 1
        assert advance(ledger, started.id) == [], "the final job is made once"
        for stage in (Stage.TRAIN, Stage.EXPORT, Stage.REGISTER, Stage.EVAL):
            run(hands, stage)
        reaper(ledger).reap()
        reaper(ledger).reap()
        assert show_sweep(ledger, started.id).status is JobStatus.SUCCEEDED

    def test_between_noting_a_stop_and_the_cancel(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        training = prepared(ledger, hands, started)
        claim = hands.claim(Stage.TRAIN)
        assert ledger.sweeps.note_stopped(started.id, 1, "Stopped early: worse.")
        advance(ledger, started.id)
        assert ledger.job(claim.job_id).cancel_requested
        assert training.points[0].job == claim.job_id


def test_two_processes_that_advance_it_at_once_make_each_job_once(
    sweep: Sweeping, ledger: Ledger, hands: Hands, redis_url: str
) -> None:
    started = sweep(grid={"train.learning_rate": [n * 1e-4 for n in range(1, 25)]})
    run(hands, Stage.PREPARE)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ADVANCE, redis_url, ledger.namespace, started.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    hinted = [job for process in both for job in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in both] == [0, 0]
    points = show_sweep(ledger, started.id).points
    assert sorted(hinted) == sorted(str(p.job) for p in points), "one hint each, no job twice"
    assert len(jobs(ledger)) == 25


#: A process that advances a sweep once it is told to, and says which jobs it made.
ADVANCE = """
import sys
from loco.ledger.ledger import Ledger
from loco.queue.sweeps import advance

url, namespace, sweep = sys.argv[1:]
ledger = Ledger.connect(url, namespace=namespace)
ledger.sweeps.plan(sweep)
print("ready", flush=True)
sys.stdin.readline()
print(*(hint.job_id for hint in advance(ledger, sweep)))
"""


class TestFailures:
    def test_a_point_that_fails_is_last_and_costs_no_sweep(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        hands.fail(hands.claim(Stage.TRAIN), "The loss is not a number.")
        run(hands, Stage.TRAIN, trained(2.0, 0.6))
        run(hands, Stage.TRAIN, trained(2.0, 0.5))
        advance(ledger, started.id)
        chosen = show_sweep(ledger, started.id)
        assert [p.rank for p in chosen.points] == [3, 2, 1]
        assert chosen.points[0].reason == "The loss is not a number."
        assert chosen.best == 3

    def test_all_fail(self, sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for _ in range(3):
            hands.fail(hands.claim(Stage.TRAIN), "The loss is not a number.")
        assert advance(ledger, started.id) == []
        ended = show_sweep(ledger, started.id)
        assert ended.status is JobStatus.FAILED
        assert ended.error is not None
        assert "None of the 3 trainings succeeded" in ended.error.message
        assert "not a number" in ended.error.message
        assert ledger.sweeps.open() == []

    def test_trainings_without_a_validation_loss(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for _ in range(3):
            run(hands, Stage.TRAIN, trained())
        advance(ledger, started.id)
        ended = show_sweep(ledger, started.id)
        assert ended.error is not None
        assert (ended.status, ended.error.code) == (JobStatus.FAILED, "no_validation_loss")

    @pytest.mark.parametrize(("rank_by", "begun"), [("validation_loss", 0), ("train_loss", 3)])
    def test_nothing_is_trained_without_a_row_to_rank_by(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands, rank_by: str, begun: int
    ) -> None:
        started = sweep(rank_by=rank_by)
        run(hands, Stage.PREPARE, {"validation": 0})
        assert len(advance(ledger, started.id)) == begun
        ended = show_sweep(ledger, started.id)
        assert sum(p.job is not None for p in ended.points) == begun
        if not begun:
            assert ended.error is not None
            assert (ended.status, ended.error.code) == (JobStatus.FAILED, "no_validation_loss")
            assert "Nothing was trained" in ended.error.message
            assert ledger.sweeps.open() == []

    def test_prepare_fails(self, sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
        started = sweep()
        hands.fail(hands.claim(Stage.PREPARE), "No rows.")
        advance(ledger, started.id)
        ended = show_sweep(ledger, started.id)
        assert ended.status is JobStatus.FAILED
        assert ended.error is not None
        assert f"loco job {started.prepare_job}" in str(ended.error.hint)
        assert [p.job for p in ended.points] == [None] * 3

    def test_what_follows_fails_and_is_retried(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for loss in (0.9, 0.5, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, loss))
        advance(ledger, started.id)
        run(hands, Stage.TRAIN)
        hands.fail(hands.claim(Stage.EXPORT), "No room.")
        advance(ledger, started.id)
        failed = show_sweep(ledger, started.id)
        assert failed.status is JobStatus.FAILED
        assert failed.error is not None
        assert f"loco retry {failed.final_job}" in str(failed.error.hint)
        ledger.retry(str(failed.final_job))
        assert show_sweep(ledger, started.id).status is JobStatus.RUNNING
        for stage in (Stage.EXPORT, Stage.REGISTER, Stage.EVAL):
            run(hands, stage)
        again = show_sweep(ledger, started.id)
        assert (again.status, again.error) == (JobStatus.SUCCEEDED, None)
        assert ledger.sweeps.page().sweeps[0].status is JobStatus.SUCCEEDED

    @pytest.mark.parametrize("whole", [False, True])
    def test_what_follows_is_cancelled_and_retried(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands, whole: bool
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for loss in (0.9, 0.5, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, loss))
        advance(ledger, started.id)
        final = str(show_sweep(ledger, started.id).final_job)
        cancel_sweep(ledger, started.id) if whole else ledger.cancel(final)
        advance(ledger, started.id)
        assert show_sweep(ledger, started.id).status is JobStatus.CANCELLED
        ledger.retry(final)
        again = JobStatus.CANCELLED if whole else JobStatus.RUNNING
        assert show_sweep(ledger, started.id).status is again
        for stage in (Stage.TRAIN, Stage.EXPORT, Stage.REGISTER, Stage.EVAL):
            run(hands, stage)
        ended = JobStatus.CANCELLED if whole else JobStatus.SUCCEEDED
        assert show_sweep(ledger, started.id).status is ended


class TestCancel:
    def test_before_prepare_ran(self, sweep: Sweeping, ledger: Ledger) -> None:
        ended = cancel_sweep(ledger, sweep().id)
        assert ended.status is JobStatus.CANCELLED
        assert [j.status for j in jobs(ledger)] == [JobStatus.CANCELLED]
        assert advance(ledger, ended.id) == []

    def test_while_prepare_runs(self, sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
        started = sweep()
        claim = hands.claim(Stage.PREPARE)
        asked = cancel_sweep(ledger, started.id)
        assert (asked.status, asked.cancel_requested) == (JobStatus.RUNNING, True)
        ledger.cancelled(claim.task_id, claim.token)
        reaper(ledger).reap()
        assert show_sweep(ledger, started.id).status is JobStatus.CANCELLED

    def test_between_prepare_and_the_trainings(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        run(hands, Stage.PREPARE)
        ended = cancel_sweep(ledger, started.id)
        assert ended.status is JobStatus.CANCELLED
        assert len(jobs(ledger)) == 1

    def test_while_one_trains(self, sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        run(hands, Stage.TRAIN, trained(2.0, 0.5))
        claim = hands.claim(Stage.TRAIN)
        asked = cancel_sweep(ledger, started.id)
        assert asked.status is JobStatus.RUNNING
        assert [p.status for p in asked.points] == ["succeeded", "running", "cancelled"]
        ledger.cancelled(claim.task_id, claim.token)
        reaper(ledger).reap()
        ended = show_sweep(ledger, started.id)
        assert (ended.status, ended.final_job) == (JobStatus.CANCELLED, None)

    def test_while_the_best_is_exported(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        prepared(ledger, hands, started)
        for loss in (0.9, 0.5, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, loss))
        advance(ledger, started.id)
        ended = cancel_sweep(ledger, started.id)
        assert ended.status is JobStatus.CANCELLED
        assert ledger.job(str(ended.final_job)).status is JobStatus.CANCELLED

    def test_a_step_that_was_on_its_way_makes_no_job_any_more(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep()
        run(hands, Stage.PREPARE)
        late = ledger.sweeps.sweep(started.id)
        cancel_sweep(ledger, started.id)
        assert sweeps._train(ledger, late) == []
        assert len(jobs(ledger)) == 1

    def test_too_late(self, sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
        started = sweep(export_best=False)
        prepared(ledger, hands, started)
        for loss in (0.9, 0.5, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, loss))
        advance(ledger, started.id)
        assert cancel_sweep(ledger, started.id).status is JobStatus.SUCCEEDED

    def test_a_sweep_that_is_not_there(self, ledger: Ledger) -> None:
        with pytest.raises(NotFound, match="No sweep"):
            cancel_sweep(ledger, "sweep-0")


class TestEarlyStop:
    def three_ended(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands, **fields: Any
    ) -> tuple[str, Claim]:
        grid = {"train.learning_rate": [1e-4, 2e-4, 3e-4, 4e-4]}
        started = sweep(grid=grid, **fields)
        prepared(ledger, hands, started)
        for last in (0.5, 0.6, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, last + 0.2, last))
        return started.id, hands.claim(Stage.TRAIN)

    def test_a_hopeless_training_is_stopped_and_ranked(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        sweep_id, claim = self.three_ended(sweep, ledger, hands)
        hands.progress(claim, validation_loss=0.79, validation_epoch=1.0, step=11, loss=0.8)
        advance(ledger, sweep_id)
        assert not ledger.job(claim.job_id).cancel_requested, "better than the median 0.8"
        hands.progress(claim, validation_loss=0.95, validation_epoch=1.0, step=12, loss=0.8)
        advance(ledger, sweep_id)
        assert ledger.job(claim.job_id).cancel_requested
        ledger.cancelled(claim.task_id, claim.token)
        advance(ledger, sweep_id)
        shown = show_sweep(ledger, sweep_id)
        assert shown.best == 1
        stopped = shown.points[3]
        assert (stopped.status, stopped.rank) == (PointStatus.STOPPED, 4)
        assert "in 1 pass is 0.9500" in str(stopped.reason)

    @pytest.mark.parametrize("fields", [{"early_stop": False}, {"rank_by": "train_loss"}])
    def test_not_where_it_was_not_asked_for(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands, fields: dict[str, Any]
    ) -> None:
        sweep_id, claim = self.three_ended(sweep, ledger, hands, **fields)
        hands.progress(claim, validation_loss=1.9, validation_epoch=1.0)
        advance(ledger, sweep_id)
        assert not ledger.job(claim.job_id).cancel_requested

    def test_not_by_trainings_of_another_length(
        self, sweep: Sweeping, ledger: Ledger, hands: Hands
    ) -> None:
        started = sweep(grid={"train.learning_rate": [1e-4, 2e-4, 3e-4], "train.epochs": [2, 9]})
        prepared(ledger, hands, started)
        for last in (0.5, 9.0, 0.6, 9.0, 0.7):
            run(hands, Stage.TRAIN, trained(2.0, last, last))
        claim = hands.claim(Stage.TRAIN)
        assert claim.job.spec.train.epochs == 9
        hands.progress(claim, validation_loss=8.0, validation_epoch=1.0)
        advance(ledger, started.id)
        assert not ledger.job(claim.job_id).cancel_requested, "the short ones say nothing of it"


def test_a_record_that_cannot_be_read_costs_that_sweep_only(
    sweep: Sweeping, ledger: Ledger, hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    broken, sound = sweep(), sweep()
    with ledger._connection.client() as client:
        broken_fields = {"points": "{", "size": "{"}
        client.hset(f"{ledger.namespace}:sweep:{broken.id}", mapping=broken_fields)
    run(hands, Stage.PREPARE)
    run(hands, Stage.PREPARE)
    for _ in range(3):
        reaper(ledger).reap()
    assert all(p.job for p in show_sweep(ledger, sound.id).points)
    assert caplog.text.count(f"{broken.id} cannot continue") == 1
    assert [s.id for s in ledger.sweeps.page().sweeps] == [sound.id]


def test_pages_are_newest_first(sweep: Sweeping, ledger: Ledger) -> None:
    made = [sweep().id for _ in range(3)]
    page = ledger.sweeps.page(limit=2)
    assert ([s.id for s in page.sweeps], page.more) == ([made[2], made[1]], True)
    page = ledger.sweeps.page(limit=2, after=made[1])
    assert ([s.id for s in page.sweeps], page.more) == ([made[0]], False)
    with pytest.raises(InvalidRequest, match="No sweep"):
        ledger.sweeps.page(after="nothing")


def test_a_recipe_edited_meanwhile_is_refused(
    sweep: Sweeping, ledger: Ledger, adapters_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweeps.frozen_spec

    def edited(*arguments):
        path = adapters_dir / "math" / "adapter.yaml"
        path.write_text(path.read_text().replace("epochs: 1\n", "epochs: 2\n"))
        return real(*arguments)

    monkeypatch.setattr(sweeps, "frozen_spec", edited)
    with pytest.raises(Conflict, match="is changing right now"):
        sweep()
    assert ledger.sweeps.open() == []


def reaper(ledger: Ledger) -> Reaper:
    return Reaper(ledger, send_hint=lambda *_: None, every=60)


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_it_begins_no_sooner_than_it_shall(sweep: Sweeping, ledger: Ledger, hands: Hands) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    started = sweep(not_before=later.isoformat())
    assert ledger.claim(Stage.PREPARE.queue, worker_id="w", nonce="n") is None
    assert abs(ledger.job(str(started.prepare_job)).not_before - later) < timedelta(seconds=1)
    with pytest.raises(InvalidRequest, match="more than a year ahead"):
        sweep(not_before=(later + timedelta(days=400)).isoformat())
