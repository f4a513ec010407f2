"""The runner with a real ledger and a real child process."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

from loco.box import redis_server
from loco.contracts.files import sha256_of
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.requests import JobRequest
from loco.contracts.specs import StageRun
from loco.contracts.stages import Queue, Stage
from loco.ledger.ledger import Ledger
from loco.queue.reaper import Reaper
from loco.recipes.resolve import resolve
from loco.running.runner import Runner, publish_committed
from loco.settings import Settings, Timings

pytestmark = [pytest.mark.redis, pytest.mark.slow]

LOOP = Path(__file__).parents[1] / "programs" / "loop.py"
TIMINGS = Timings(
    lease=3, renew=0.2, reap=0.3, stale_child=2, watchdog=2.5, stop_grace=2, retry_backoff=0
)
ALL = tuple(Stage)


class Bench:
    """A ledger, an adapters folder and a runner over the loop program."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self.ledger = ledger
        self.settings = settings
        self.hints: list[tuple[str, Stage]] = []
        self.runner = self.new_runner("w1")

    def new_runner(self, worker_id: str) -> Runner:
        return Runner(
            self.ledger,
            self.settings,
            worker_id=worker_id,
            send_hint=lambda job_id, stage: self.hints.append((job_id, stage)),
            command=lambda stage: [os.environ["LOOP_PYTHON"], str(LOOP), stage],
        )

    def submit(self, *stages: Stage, **request: object) -> Job:
        wanted = JobRequest.model_validate(
            {"adapter": "math", "profile": "tiny", "stages": stages or None, **request}
        )
        return self.ledger.submit(resolve(self.settings.adapters_dir, wanted))[0]

    def task(self, job: Job, stage: Stage) -> Task:
        task = self.ledger.job(job.id).stage(stage)
        assert task is not None
        return task

    def written(self, job: Job, stage: Stage) -> Path:
        """The last file a stage committed."""
        return self.settings.adapters_dir / self.task(job, stage).artifacts[-1].path

    def folder(self, job: Job, stage: Stage) -> Path:
        """The newest attempt's folder."""
        runs = self.settings.adapters_dir / "math" / "runs" / job.id / stage
        return max(runs.iterdir(), key=lambda p: int(p.name[1:]))


@pytest.fixture
def bench(
    redis_url: str,
    namespace: str,
    adapters_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    monkeypatch.setenv("LOOP_PYTHON", sys.executable)
    monkeypatch.delenv("LOOP_FAULT", raising=False)
    ledger = Ledger.connect(redis_url, namespace=namespace, timings=TIMINGS)
    (adapters_dir / "math" / "eval_dataset.jsonl").write_text('{"id": "1"}\n')
    settings = Settings(
        data_dir=tmp_path / "data",
        adapters_dir=adapters_dir,
        redis_url=redis_url,
        timings=TIMINGS,
        pass_env=("LOOP_FAULT", "LOOP_STEP_SECONDS"),
    )
    yield Bench(ledger, settings)
    ledger.close()


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def group_members(group: int) -> list[int]:
    """Living processes of a process group (zombies wait for init, which is not our business)."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


def in_background(runner: Runner, queue: Queue) -> threading.Thread:
    thread = threading.Thread(target=runner.run_one, args=(queue,))
    thread.start()
    return thread


def test_nothing_to_do(bench: Bench) -> None:
    assert bench.runner.run_one(Queue.CPU) is False


def test_a_stage_commits_publishes_and_passes_the_job_on(bench: Bench) -> None:
    job = bench.submit()
    assert bench.runner.run_one(Queue.CPU)

    task = bench.task(job, Stage.PREPARE)
    assert task.status is StageStatus.SUCCEEDED
    assert task.progress is not None
    assert task.progress.percent == 100
    assert [a.name for a in task.artifacts] == ["environment.json", "training_data.jsonl"]
    path = bench.written(job, Stage.PREPARE)
    assert path.parent == bench.folder(job, Stage.PREPARE)
    assert (bench.settings.adapters_dir / "math" / job.spec.place / "training_data.jsonl").samefile(
        path
    )
    assert bench.ledger.unpublished() == []
    assert bench.hints == [(job.id, Stage.TRAIN)]
    names = {p.name for p in path.parent.iterdir()}
    assert {"spec.json", "stage.log", "environment.json", "result.json"} <= names
    assert json.loads((path.parents[2] / "spec.json").read_text())["adapter"] == "math"


def test_later_stages_read_what_earlier_ones_committed(bench: Bench) -> None:
    job = bench.submit(Stage.PREPARE, Stage.TRAIN)
    bench.runner.run_one(Queue.CPU)
    bench.runner.run_one(Queue.GPU)
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED
    spec = StageRun.model_validate_json((bench.folder(job, Stage.TRAIN) / "spec.json").read_bytes())
    data = spec.inputs.files["prepare/training_data.jsonl"]
    assert data.read_text() == "training_data.jsonl of prepare, 10 steps\n"
    assert Stage.PREPARE in spec.inputs.results

    export = bench.submit(Stage.EXPORT, from_job=job.id)
    bench.runner.run_one(Queue.GPU)
    spec = StageRun.model_validate_json(
        (bench.folder(export, Stage.EXPORT) / "spec.json").read_bytes()
    )
    assert "train/checkpoints/adapter_model.safetensors" in spec.inputs.files


def test_the_same_inputs_are_reused_and_changed_ones_are_not(bench: Bench) -> None:
    first = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    second = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    task = bench.task(second, Stage.PREPARE)
    assert task.status is StageStatus.REUSED
    assert task.reused_from == first.id
    assert task.artifacts == bench.task(first, Stage.PREPARE).artifacts

    third = bench.submit(Stage.PREPARE, seed=1)
    bench.runner.run_one(Queue.CPU)
    assert bench.task(third, Stage.PREPARE).status is StageStatus.SUCCEEDED

    refused = bench.submit(Stage.PREPARE, reuse=False)
    bench.runner.run_one(Queue.CPU)
    assert bench.task(refused, Stage.PREPARE).status is StageStatus.SUCCEEDED

    (bench.settings.adapters_dir / "math" / "eval_dataset.jsonl").write_text('{"id": "2"}\n')
    other_benchmark = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    assert bench.task(other_benchmark, Stage.PREPARE).status is StageStatus.SUCCEEDED


def test_a_base_s_own_answers_are_asked_for_anew_and_train_is_reused(bench: Bench) -> None:
    """The base may be another one under its name since; the same answers give the same files."""
    own = {"source": {"kind": "self", "questions": {"kind": "arithmetic"}}}
    first, second = (bench.submit(Stage.PREPARE, Stage.TRAIN, prepare=own) for _ in range(2))
    for queue in (Queue.CPU, Queue.CPU, Queue.GPU, Queue.GPU):
        bench.runner.run_one(queue)
    for job in (first, second):
        assert bench.task(job, Stage.PREPARE).status is StageStatus.SUCCEEDED
    assert bench.task(second, Stage.TRAIN).reused_from == first.id


def test_what_models_in_ollama_answer_is_measured_anew(bench: Bench) -> None:
    """The base may be another one under its name since."""
    built = bench.submit()
    for stage in Stage:
        bench.runner.run_one(stage.queue)
    assert bench.ledger.job(built.id).status is JobStatus.SUCCEEDED
    for _ in range(2):
        job = bench.submit(Stage.EVAL, from_job=built.id)
        bench.runner.run_one(Queue.CPU)
        assert bench.task(job, Stage.EVAL).status is StageStatus.SUCCEEDED


def test_damaged_files_are_not_reused(bench: Bench) -> None:
    first = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    path = bench.written(first, Stage.PREPARE)
    path.write_text(path.read_text().replace("prepare", "PREPARE"))
    second = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    assert bench.task(second, Stage.PREPARE).status is StageStatus.SUCCEEDED


def test_an_error_of_the_program_ends_the_stage_with_its_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_FAULT", "memory")
    job = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    error = bench.ledger.job(job.id).error
    assert error is not None
    assert (error.code, error.hint, error.user_fault) == (
        "out_of_memory",
        "Take a smaller batch.",
        True,
    )


def test_an_error_that_may_pass_is_retried(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_FAULT", "passing")
    job = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    assert not bench.ledger.job(job.id).is_terminal
    monkeypatch.delenv("LOOP_FAULT")
    wait_for(lambda: bench.runner.run_one(Queue.CPU))
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED
    assert bench.task(job, Stage.PREPARE).attempt == 2


def test_a_killed_program_resumes_from_its_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0.1")
    job = bench.submit(Stage.PREPARE)
    thread = in_background(bench.runner, Queue.CPU)
    wait_for(lambda: len(bench.task(job, Stage.PREPARE).checkpoints) >= 2)
    os.kill(int((bench.folder(job, Stage.PREPARE) / "pid").read_text()), signal.SIGKILL)
    thread.join()
    assert bench.hints == [(job.id, Stage.PREPARE)]
    assert bench.runner.run_one(Queue.CPU)
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED
    resumed = json.loads((bench.folder(job, Stage.PREPARE) / "resumed.json").read_text())
    assert resumed["from"] >= 4
    first, second = sorted(bench.folder(job, Stage.PREPARE).parent.iterdir())
    left = {p.name for p in first.iterdir()}
    assert left == {"spec.json", "stage.log", "environment.json"}  # its checkpoints are not needed
    assert (second / "training_data.jsonl").exists()


def test_a_poison_stage_is_given_up_and_says_what_happened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_FAULT", "killed")
    job = bench.submit(Stage.PREPARE)
    for _ in range(TIMINGS.crash_budget):
        assert bench.runner.run_one(Queue.CPU)
    error = bench.ledger.job(job.id).error
    assert error is not None
    assert error.code == "worker_crashed"
    assert "SIGKILL" in error.message
    assert "last words" in error.message
    assert error.hint is not None
    assert "memory" in error.hint


@pytest.mark.parametrize("fault", ["", "deaf", "grandchild"])
def test_cancel_leaves_no_process_and_a_job_that_resumes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0.5")
    monkeypatch.setenv("LOOP_FAULT", fault)
    job = bench.submit(Stage.PREPARE)
    thread = in_background(bench.runner, Queue.CPU)
    wait_for(lambda: len(bench.task(job, Stage.PREPARE).checkpoints) >= 1)
    pid = int((bench.folder(job, Stage.PREPARE) / "pid").read_text())
    bench.ledger.cancel(job.id)
    thread.join()
    assert bench.ledger.job(job.id).status is JobStatus.CANCELLED
    assert not alive(pid)
    wait_for(lambda: group_members(pid) == [])

    monkeypatch.setenv("LOOP_FAULT", "")
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0")
    bench.ledger.retry(job.id)
    assert bench.runner.run_one(Queue.CPU)
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED
    resumed = json.loads((bench.folder(job, Stage.PREPARE) / "resumed.json").read_text())
    assert resumed["from"] >= 2


def test_drain_releases_the_stage_without_counting_a_crash(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0.2")
    job = bench.submit(Stage.PREPARE)
    thread = in_background(bench.runner, Queue.CPU)
    wait_for(lambda: len(bench.task(job, Stage.PREPARE).checkpoints) >= 1)
    bench.ledger.drain("w1")
    thread.join()
    task = bench.task(job, Stage.PREPARE)
    assert task.status is StageStatus.QUEUED
    assert task.crashes == 0
    assert bench.runner.run_one(Queue.CPU) is False  # a drained worker takes nothing more
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0")
    assert bench.new_runner("w2").run_one(Queue.CPU)
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED


def test_a_lost_lease_ends_the_program_and_commits_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0.3")
    job = bench.submit(Stage.PREPARE)
    thread = in_background(bench.runner, Queue.CPU)
    wait_for(lambda: len(bench.task(job, Stage.PREPARE).checkpoints) >= 1)
    pid = int((bench.folder(job, Stage.PREPARE) / "pid").read_text())
    running = bench.task(job, Stage.PREPARE)
    assert running.status is StageStatus.RUNNING
    token = int(bench.folder(job, Stage.PREPARE).name[1:])
    bench.ledger.release(running.task_id, token)  # as if the reaper had given it away
    thread.join()
    assert not alive(pid)
    assert bench.task(job, Stage.PREPARE).status is StageStatus.QUEUED


def test_babble_on_the_event_pipe_becomes_log_lines(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_FAULT", "babble")
    job = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    assert bench.ledger.job(job.id).status is JobStatus.SUCCEEDED
    lines = [e.data["message"] for e in bench.ledger.events(job.id) if e.type == "stage.log"]
    assert "no event" in lines


def test_a_file_outside_the_attempt_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_FAULT", "escape")
    job = bench.submit(Stage.PREPARE)
    bench.runner.run_one(Queue.CPU)
    error = bench.ledger.job(job.id).error
    assert error is not None
    assert "not a file inside its folder" in error.message


def test_committed_files_are_read_only(bench: Bench) -> None:
    job = bench.submit()
    bench.runner.run_one(Queue.CPU)
    artifact = bench.task(job, Stage.PREPARE).artifacts[-1]
    path = bench.settings.adapters_dir / artifact.path
    assert S_IMODE(path.stat().st_mode) == 0o444
    published = bench.settings.adapters_dir / "math" / job.spec.place / "training_data.jsonl"
    assert S_IMODE(published.stat().st_mode) == 0o444


def test_an_edit_of_the_published_file_fails_later_stages_and_is_not_reused(bench: Bench) -> None:
    job = bench.submit(Stage.PREPARE, Stage.TRAIN)
    bench.runner.run_one(Queue.CPU)
    published = bench.settings.adapters_dir / "math" / job.spec.place / "training_data.jsonl"
    times = published.stat()
    with published.open("r+b") as file:  # root may, whatever the mode
        file.write(b"TRAINING")
    os.utime(published, ns=(times.st_atime_ns, times.st_mtime_ns))
    bench.runner.run_one(Queue.GPU)
    error = bench.ledger.job(job.id).error
    assert error is not None
    assert (error.code, error.stage, error.user_fault) == ("artifact_changed", Stage.TRAIN, True)
    artifact = bench.task(job, Stage.PREPARE).artifacts[-1]
    for part in (artifact.path, artifact.sha256, sha256_of(published)):
        assert part in error.message
    assert error.hint is not None
    assert "Run stage prepare again" in error.hint

    built_on = bench.submit(Stage.TRAIN, from_job=job.id)
    bench.runner.run_one(Queue.GPU)
    error = bench.ledger.job(built_on.id).error
    assert error is not None
    assert error.code == "artifact_changed"

    again = bench.submit(Stage.PREPARE, Stage.TRAIN)
    bench.runner.run_one(Queue.CPU)
    bench.runner.run_one(Queue.GPU)
    assert bench.task(again, Stage.PREPARE).status is StageStatus.SUCCEEDED  # not reused
    assert bench.ledger.job(again.id).status is JobStatus.SUCCEEDED
    assert sha256_of(published) == artifact.sha256  # published anew


def test_a_vanished_input_names_the_stage_to_run_again(bench: Bench) -> None:
    job = bench.submit(Stage.PREPARE, Stage.TRAIN)
    bench.runner.run_one(Queue.CPU)
    bench.written(job, Stage.PREPARE).unlink()
    bench.runner.run_one(Queue.GPU)
    error = bench.ledger.job(job.id).error
    assert error is not None
    assert "is missing" in error.message
    assert error.hint is not None
    assert "prepare" in error.hint


def test_without_redis_the_program_stops_and_goes_on_when_it_is_back(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0.4")
    server = redis_server.start(tmp_path / "redis")
    ledger = Ledger.connect(server.url, timings=TIMINGS)
    own = Bench(ledger, bench.settings)
    job = own.submit(Stage.PREPARE)
    thread = in_background(own.runner, Queue.CPU)
    wait_for(lambda: len(own.task(job, Stage.PREPARE).checkpoints) >= 1)
    pid = int((own.folder(job, Stage.PREPARE) / "pid").read_text())
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not alive(pid))
    assert thread.is_alive()  # it has something to tell the ledger
    server = redis_server.start(tmp_path / "redis")
    thread.join()
    task = own.task(job, Stage.PREPARE)
    assert task.status is StageStatus.QUEUED
    assert task.crashes == 0
    monkeypatch.setenv("LOOP_STEP_SECONDS", "0")
    assert own.runner.run_one(Queue.CPU)
    assert ledger.job(job.id).status is JobStatus.SUCCEEDED
    resumed = json.loads((own.folder(job, Stage.PREPARE) / "resumed.json").read_text())
    assert resumed["from"] >= 2
    ledger.close()
    server.stop()


def test_the_reaper_publishes_what_a_dead_worker_left_and_sends_its_hint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit  # as if the worker were killed between commit and publish

    job = bench.submit(Stage.PREPARE, Stage.TRAIN)
    monkeypatch.setattr(Runner, "_after_commit", die)
    with pytest.raises(SystemExit):
        bench.runner.run_one(Queue.CPU)
    place = bench.settings.adapters_dir / "math" / job.spec.place / "training_data.jsonl"
    assert not place.exists()
    assert bench.hints == []

    reaper = Reaper(
        Ledger.connect(
            str(bench.settings.redis_url),
            namespace=bench.ledger.namespace,
            timings=TIMINGS.model_copy(update={"rehint": 0.1}),
        ),
        send_hint=lambda job_id, stage: bench.hints.append((job_id, stage)),
        publish=lambda task_id: publish_committed(bench.ledger, bench.settings, task_id),
        every=0.1,
    )
    reaper.start()
    wait_for(lambda: bench.hints == [(job.id, Stage.TRAIN)] and place.exists())
    wait_for(lambda: bench.ledger.unpublished() == [])
    reaper.stop()
