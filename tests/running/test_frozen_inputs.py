"""A job reads what was there when it was accepted: the real prepare program after an edit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from loco.contracts.artifacts import Artifact
from loco.contracts.diffs import Sameness
from loco.contracts.files import sha256_of
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.requests import JobRequest, ReplayRequest
from loco.contracts.specs import StageRun
from loco.contracts.stages import Queue, Stage
from loco.grading.job_diff import compare
from loco.grading.job_records import read_records
from loco.ledger.ledger import Ledger
from loco.queue.replay import replay
from loco.queue.submission import submit
from loco.recipes.resolve import resolve
from loco.running.attempt import fingerprint, stage_run
from loco.running.runner import Runner
from loco.settings import Settings

pytestmark = [pytest.mark.redis, pytest.mark.slow]

REQUEST = {
    "adapter": "math",
    "profile": "tiny",
    "stages": ["prepare"],
    "prepare": {
        "source": {"kind": "jsonl", "path": "mine.jsonl"},
        "examples": 3,
        "validation": 0,
    },
    "eval": {"sets": {"held_out": None}},
}


def rows(word: str) -> str:
    return "".join(
        json.dumps({"question": f"How many {word} are {n} and {n}?", "answer": f"#### {2 * n}"})
        + "\n"
        for n in (1, 2, 3)
    )


@pytest.fixture
def mine(adapters_dir: Path) -> Path:
    path = adapters_dir / "math" / "mine.jsonl"
    path.write_text(rows("pears"))
    return path


@pytest.fixture
def runner(ledger: Ledger, settings: Settings) -> Runner:
    return Runner(ledger, settings, worker_id="w1", send_hint=lambda *_: None)


@pytest.fixture
def ask(ledger: Ledger, app: Celery, settings: Settings) -> Callable[..., Job]:
    def ask(**changes: object) -> Job:
        return submit(ledger, app, settings, JobRequest.model_validate({**REQUEST, **changes}))[0]

    return ask


def prepared(ledger: Ledger, job: Job) -> Task:
    task = ledger.job(job.id).stage(Stage.PREPARE)
    assert task is not None
    return task


def training_data(settings: Settings, task: Task) -> str:
    found: Artifact = next(a for a in task.artifacts if a.name == "training_data.jsonl")
    return (settings.adapters_dir / found.path).read_text()


def test_an_edit_between_submit_and_prepare_changes_nothing(
    ask: Callable[..., Job], runner: Runner, ledger: Ledger, settings: Settings, mine: Path
) -> None:
    job = ask()
    digest = sha256_of(mine)
    mine.write_text(rows("plums"))
    (settings.adapters_dir / "math" / "eval_dataset.jsonl").unlink()
    runner.run_one(Queue.CPU)
    task = prepared(ledger, job)
    assert task.status is StageStatus.SUCCEEDED, task.error
    assert "pears" in training_data(settings, task)
    assert "plums" not in training_data(settings, task)
    assert task.result is not None
    assert task.result["source"] == f"mine.jsonl (sha256 {digest[:12]})", "the user's name of it"

    anew = ask(eval={"sets": {"held_out": None, "benchmark": None, "b": arithmetic()}})
    runner.run_one(Queue.CPU)
    assert "plums" in training_data(settings, prepared(ledger, anew))


def arithmetic() -> dict[str, object]:
    return {"source": {"kind": "arithmetic"}, "count": 2}


def test_the_frozen_content_decides_what_is_reused(
    ask: Callable[..., Job], runner: Runner, ledger: Ledger, mine: Path
) -> None:
    first, second = ask(), ask()
    mine.write_text(rows("plums"))
    third = ask()
    mine.write_text(rows("pears"))
    for _ in range(3):
        runner.run_one(Queue.CPU)
    assert prepared(ledger, second).reused_from == first.id
    assert prepared(ledger, third).status is StageStatus.SUCCEEDED, "other bytes, another run"


def test_a_retry_reads_the_same_bytes(
    ask: Callable[..., Job], runner: Runner, ledger: Ledger, settings: Settings, mine: Path
) -> None:
    job = ask()
    ledger.cancel(job.id)
    mine.write_text(rows("plums"))
    ledger.retry(job.id)
    runner.run_one(Queue.CPU)
    assert "pears" in training_data(settings, prepared(ledger, job))


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_damaged_copy_fails_with_its_name(
    ask: Callable[..., Job],
    runner: Runner,
    ledger: Ledger,
    settings: Settings,
    harm: str,
    mine: Path,
) -> None:
    job = ask()
    copy = settings.adapters_dir / job.spec.inputs["mine.jsonl"].path
    copy.chmod(0o644)
    copy.write_text(rows("prunes")) if harm == "changed" else copy.unlink()
    runner.run_one(Queue.CPU)
    ended = ledger.job(job.id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert ended.error.code == "bad_data"
    assert "'mine.jsonl' as it was when the job was accepted" in ended.error.message
    assert ("SHA-256" if harm == "changed" else "is gone") in ended.error.message
    assert "Submit the job again" in str(ended.error.hint)


def test_a_job_of_an_earlier_release_reads_what_lies_there(
    runner: Runner, ledger: Ledger, settings: Settings, mine: Path
) -> None:
    spec = resolve(settings.adapters_dir, JobRequest.model_validate(REQUEST))
    assert spec.inputs == {}
    jobs = []
    for word in ("pears", "plums", "plums"):
        mine.write_text(rows(word))
        jobs.append(ledger.submit(spec)[0])
        runner.run_one(Queue.CPU)
    tasks = [prepared(ledger, job) for job in jobs]
    assert "plums" in training_data(settings, tasks[1])
    assert [t.reused_from for t in tasks] == [None, None, jobs[1].id]


def test_by_hand_a_stage_reads_the_frozen_files(
    ask: Callable[..., Job],
    runner: Runner,
    ledger: Ledger,
    settings: Settings,
    tmp_path: Path,
    mine: Path,
) -> None:
    job = ask()
    runner.run_one(Queue.CPU)
    mine.unlink()
    (spec,) = (settings.adapters_dir / "math" / "runs" / job.id).glob("prepare/a*/spec.json")
    again = tmp_path / "again"
    command = [
        sys.executable,
        "-m",
        Stage.PREPARE.program,
        "--spec",
        str(spec),
        "--out",
        str(again),
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    expected = training_data(settings, prepared(ledger, job))
    assert (again / "training_data.jsonl").read_text() == expected
    frozen = StageRun.model_validate_json(spec.read_bytes()).inputs.frozen["mine.jsonl"]
    assert Path(frozen.path).is_absolute()


def test_what_a_stage_ran_on_is_an_artifact_that_decides_nothing(
    ask: Callable[..., Job], runner: Runner, ledger: Ledger, settings: Settings, mine: Path
) -> None:
    job = ask(stages=["prepare", "train"])
    runner.run_one(Queue.CPU)
    task = prepared(ledger, job)
    found = next(a for a in task.artifacts if a.name == "environment.json")
    environment = json.loads((settings.adapters_dir / found.path).read_bytes())
    assert environment["packages"]["pydantic"]

    claim = ledger.claim(Queue.GPU, worker_id="w1", nonce="n")
    assert claim is not None
    run = stage_run(ledger, settings, claim)
    marks = set()
    for changed in ("", "environment.json", "training_data.jsonl"):
        artifacts = tuple(
            a.model_copy(update={"sha256": "0" * 64}) if a.name == changed else a
            for a in task.artifacts
        )
        earlier = {Stage.PREPARE: task.model_copy(update={"artifacts": artifacts})}
        marks.add(fingerprint(run, earlier, job.spec.train))
    assert len(marks) == 2, "another environment alone gives the same fingerprint"
    other = {**run.spec, "base_model": {**run.spec["base_model"], "license": "another"}}
    relicensed = run.model_copy(update={"spec": other})
    assert fingerprint(relicensed, earlier, job.spec.train) in marks, "people read licences alone"


def test_a_replay_after_every_edit_is_identical(
    ask: Callable[..., Job],
    runner: Runner,
    ledger: Ledger,
    app: Celery,
    settings: Settings,
    mine: Path,
) -> None:
    job = ask()
    runner.run_one(Queue.CPU)
    for file in (settings.adapters_dir / "math").glob("*.*"):
        file.unlink()
    new, _ = replay(ledger, app, settings, job.id, ReplayRequest())
    runner.run_one(Queue.CPU)
    task = prepared(ledger, new)
    assert (task.status, task.reused_from) == (StageStatus.SUCCEEDED, None), task.error

    pair = [ledger.job(i) for i in (job.id, new.id)]
    found = compare(*(read_records(j, ledger.outputs(j), settings.adapters_dir) for j in pair))
    assert found.verdict is Sameness.IDENTICAL, found.reasons
    assert found.data == found.environment == ()
    published = settings.adapters_dir / "math" / "replays" / job.id / "training_data.jsonl"
    assert published.read_text() == training_data(settings, task)
    assert not (settings.adapters_dir / "math" / "training_data.jsonl").exists()
