"""Figures, the views of a running job, and the summary of an ended one, as text."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from rich.text import Text

from loco.cli.progress import bar, in_words
from loco.cli.summary import p_value, render
from loco.cli.watch import LineView, TableView
from loco.contracts.artifacts import Artifact
from loco.contracts.figures import share
from loco.contracts.jobs import Failure, Job, JobEvent, JobStatus, StageStatus, Task
from loco.contracts.program_events import Progress
from loco.contracts.requests import JobRequest
from loco.contracts.stages import Stage
from loco.recipes.resolve import resolve

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_shares_and_p_values():
    assert (share(0.55), share(0.555), share(1)) == ("55 %", "55.5 %", "100 %")
    assert (p_value(0.0371), p_value(1.0), p_value(3e-9)) == ("0.037", "1", "< 0.0001")


def test_bars():
    assert bar(None) == ""
    assert bar(0, width=4) == "╌╌╌╌   0 %"
    assert bar(50, width=4) == "━━╌╌  50 %"
    assert bar(140, width=4) == "━━━━ 100 %"


def test_progress_in_words():
    progress = Progress(
        percent=30, step=3, total_steps=10, loss=1.23456, tokens_per_second=512.3, eta_seconds=65
    )
    assert in_words(progress) == "1 min 05 s left, step 3/10, loss 1.235, 512 tokens/s"
    measured = progress.model_copy(update={"validation_loss": 0.98765})
    assert "loss 1.235, validation 0.988, 512 tokens/s" in in_words(measured)
    assert in_words(Progress(percent=30.4, message="reading")) == "30 %, reading"
    asking = Progress(step=80, total_steps=232, message="asked 150, right 81")
    asking = asking.model_copy(update={"tokens_per_second": 95.4, "eta_seconds": 312.0})
    assert in_words(asking) == "5 min 12 s left, step 80/232, asked 150, right 81, 95 tokens/s"


@pytest.fixture
def spec(adapters_dir):
    return resolve(adapters_dir, JobRequest(adapter="math", profile="tiny"))


@pytest.fixture
def make_job(spec):
    def make(status: JobStatus, *tasks: Task, **fields) -> Job:
        times = {"created_at": NOON, "started_at": NOON}
        if status.is_terminal:
            times["finished_at"] = NOON + timedelta(seconds=151)
        return Job(
            **{
                "id": "J",
                "adapter": "math",
                "profile": "tiny",
                "status": status,
                "stages": tasks,
                "spec": spec,
                **times,
                **fields,
            }
        )

    return make


def task(stage: Stage, status: StageStatus = StageStatus.SUCCEEDED, **fields) -> Task:
    return Task(
        **{
            "task_id": f"J-{stage}",
            "job_id": "J",
            "stage": stage,
            "status": status,
            "started_at": NOON,
            "finished_at": NOON + timedelta(seconds=71) if status.is_terminal else None,
            **fields,
        }
    )


def text_of(renderable, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable, crop=False)
    return console.file.getvalue()


def test_the_summary_says_what_a_job_came_to(make_job):
    prepare = {
        "seconds": 1,
        "files": {},
        "source": "arithmetic",
        "read": 170,
        "kept": 160,
        "dropped": {"duplicate": 8, "overlap": 2},
        "overlaps": [],
        "eval_items_checked": 120,
        "eval_sets": {"benchmark": 20, "held_out": 100},
    }
    export = {
        "seconds": 9,
        "files": {},
        "gguf": "gguf/unsloth.Q4_K_M.gguf",
        "quantization": "Q4_K_M",
        "size": 105_454_432,
        "sha256": "a" * 64,
        "tensor_types": {"Q4_K": 1},
        "tensors": 272,
        "sample_prompt": "?",
        "sample_answer": "!",
        "device": "cpu",
        "read_seconds": 1,
        "quantize_seconds": 3,
        "write_seconds": 5,
        "check_seconds": 1,
        "peak_ram_gb": 1.2,
    }
    register = {
        "seconds": 1,
        "files": {},
        "ollama_host": "http://127.0.0.1:11434",
        "ollama_version": "0.33.0",
        "candidate": "locollm-math:J",
        "digest": "d",
        "blob": "b",
        "uploaded": True,
        "probe_answer": "4",
    }
    gguf = Artifact(
        name="gguf/unsloth.Q4_K_M.gguf",
        stage=Stage.EXPORT,
        path="math/runs/J/export/a3/gguf/unsloth.Q4_K_M.gguf",
        size=105_454_432,
        sha256="a" * 64,
        media_type="application/vnd.gguf",
    )
    text = text_of(
        render(
            make_job(
                JobStatus.SUCCEEDED,
                task(Stage.PREPARE, StageStatus.REUSED, result=prepare, reused_from="I"),
                task(Stage.EXPORT, result=export, artifacts=(gguf,)),
                task(Stage.REGISTER, result=register),
            )
        )
    )
    assert "succeeded in 2 min 22 s" in text
    assert (
        "160 of 170 rows and none for validation, apart from 120 eval problems; left out 8 duplicate, 2 overlap (from I)"
        in text
    )
    assert "1 min 11 s  Q4_K_M GGUF, 105.5 MB, 272 tensors" in text
    assert "GGUF    export/gguf/unsloth.Q4_K_M.gguf" in text
    assert "math/runs" not in text, "a path of the server's, of no use on a laptop"
    assert "loco artifacts J export --download ." in text
    assert "a" * 64 in text
    assert "ollama run locollm-math:J" in text


@pytest.mark.parametrize(
    ("version", "told"),
    [("0.33.0", "ollama run locollm-math"), ("0.33.0+locollm", "loco chat math --job ")],
)
def test_where_there_is_no_ollama_the_summary_names_none(make_job, version, told):
    result = {
        "seconds": 1,
        "files": {},
        "ollama_host": "http://h",
        "ollama_version": version,
        "candidate": "locollm-math:J",
        "digest": "d",
        "blob": "b",
        "uploaded": True,
        "probe_answer": "4",
    }
    text = text_of(render(make_job(JobStatus.SUCCEEDED, task(Stage.REGISTER, result=result))))
    assert told in text
    assert ("ollama run" in text) is (told.startswith("ollama"))


@pytest.mark.parametrize("width", [60, 80])
def test_what_people_copy_is_on_one_line(make_job, width):
    """A path and a hash were folded, so that a double click took half of them."""
    path = "math/runs/20261122-143722-4f9a2c/export/a1/gguf/unsloth.Q4_K_M.gguf"
    gguf = Artifact(
        name="gguf/unsloth.Q4_K_M.gguf",
        stage=Stage.EXPORT,
        path=path,
        size=1,
        sha256="a" * 64,
        media_type="application/vnd.gguf",
    )
    exported = task(Stage.EXPORT, artifacts=(gguf,))
    lines = text_of(render(make_job(JobStatus.SUCCEEDED, exported)), width).splitlines()
    assert "GGUF    export/gguf/unsloth.Q4_K_M.gguf" in lines
    assert "get it  loco artifacts J export --download ." in lines
    assert f"sha256  {'a' * 64}" in lines


def test_the_summary_of_a_failure_says_what_to_do(make_job):
    failure = Failure(
        code="out_of_memory",
        message="The GPU is full.",
        hint="Lower train.batch_size.",
        stage=Stage.TRAIN,
        attempt=1,
        user_fault=True,
    )
    text = text_of(
        render(
            make_job(
                JobStatus.FAILED,
                task(Stage.TRAIN, StageStatus.FAILED, error=failure),
                task(Stage.EXPORT, StageStatus.PENDING),
                error=failure,
            )
        )
    )
    assert "The GPU is full." in text
    assert "Lower train.batch_size." in text
    assert "loco retry J" in text


def test_a_result_of_another_version_is_no_crash(make_job):
    old = task(Stage.TRAIN, result={"seconds": 1, "loss": 3})
    evaluated = task(Stage.EVAL, result={"score": 1})
    text = text_of(render(make_job(JobStatus.SUCCEEDED, old, evaluated)))
    assert text.count("`loco job --json` shows the result") == 2


def test_an_error_of_an_attempt_that_was_made_good_is_not_shown(make_job):
    crash = Failure(
        code="worker_crashed",
        message="It died.",
        stage=Stage.EVAL,
        attempt=1,
        user_fault=False,
    )
    done = task(Stage.EVAL, error=crash, result={"score": 1})
    assert "It died." not in text_of(render(make_job(JobStatus.SUCCEEDED, done)))


def test_text_of_the_server_is_no_markup(make_job):
    failure = Failure(
        code="x",
        message="[bold]odd[/nope] [1, 2]",
        stage=Stage.TRAIN,
        attempt=1,
        user_fault=True,
    )
    failed = task(Stage.TRAIN, StageStatus.FAILED, error=failure)
    assert "[bold]odd[/nope] [1, 2]" in text_of(render(make_job(JobStatus.FAILED, failed)))


def event(kind: str, stage: Stage | None = None, *, after: float = 0, **data) -> JobEvent:
    return JobEvent(id="1-0", type=kind, at=NOON + timedelta(seconds=after), stage=stage, data=data)


def test_lines_are_as_many_as_a_log_bears():
    console = Console(file=io.StringIO(), width=160)
    view = LineView(console)
    view.on_event(event("job.queued"))
    view.on_event(event("job.running"))
    view.on_event(event("stage.running", Stage.TRAIN, worker="w", attempt=1))
    for step in range(100):
        view.on_event(
            event("stage.progress", Stage.TRAIN, after=step / 10, step=step, total_steps=100)
        )
    view.on_event(event("stage.log", Stage.TRAIN, message="[red]a line"))
    view.on_event(event("stage.checkpoint", Stage.TRAIN, step=50, path="x"))
    view.on_event(event("stage.retry", Stage.TRAIN, error={"message": "It died."}))
    view.on_event(event("stage.reused", Stage.EXPORT, reused_from="I"))
    view.on_event(event("version.refused", Stage.EVAL, version=2, model="m", reason="worse"))
    assert console.file.getvalue().splitlines() == [
        "job       running",
        "train     running on w, attempt 1",
        "train     step 0/100",
        "train     step 50/100",
        "train     [red]a line",
        "train     checkpoint at step 50",
        "train     retry (It died.)",
        "export    reused from I",
        "eval      refused version 2 (worse)",
    ]


class OneJob:
    """Answers `job` like a client."""

    def __init__(self, job: Job) -> None:
        self.answer = job

    def job(self, _: str) -> Job:
        return self.answer


def test_the_table_shows_curve_bar_and_time(make_job):
    running = make_job(
        JobStatus.RUNNING,
        task(Stage.PREPARE, result={"x": 1}),
        task(Stage.TRAIN, StageStatus.RUNNING),
        task(Stage.EXPORT, StageStatus.PENDING),
    )
    client = OneJob(running)
    view = TableView(client, running)
    for step, loss in enumerate((3.0, 2.0, 1.0), 1):
        view.on_event(
            event(
                "stage.progress",
                Stage.TRAIN,
                step=step,
                total_steps=4,
                percent=25 * step,
                loss=loss,
                elapsed_seconds=60,
            )
        )
    text = text_of(view.renderable())
    assert "━━━━━━━━━━━━━━━╌╌╌╌╌  75 %  step 3/4, loss 1.000  █▅▁" in text
    assert "1 min 00 s" in text
    view.on_event(event("stage.running", Stage.TRAIN, attempt=2))
    assert "█▅▁" not in text_of(view.renderable())
    client.answer = make_job(JobStatus.CANCELLED, task(Stage.TRAIN, StageStatus.CANCELLED))
    view.on_event(event("job.cancelled"))
    assert "cancelled in 1 min 11 s" in text_of(view.renderable())


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("colours", [True, False])
def test_names_states_and_the_time_left_are_whole_on_any_terminal(make_job, width, colours):
    """On 80 columns `prepare` and `succeeded` had shrunk to `p…` and `suc…`."""
    running = make_job(
        JobStatus.RUNNING,
        task(Stage.PREPARE, StageStatus.REUSED, result={"x": 1}, reused_from="I"),
        task(Stage.TRAIN, StageStatus.RUNNING),
        task(Stage.EXPORT, StageStatus.PENDING),
        task(Stage.REGISTER, StageStatus.PENDING),
        task(Stage.EVAL, StageStatus.PENDING),
    )
    view = TableView(OneJob(running), running)
    fields = {"step": 41, "total_steps": 75, "percent": 54.7, "loss": 1.2345, "message": "training"}
    speed = {"tokens_per_second": 12_345.0, "gpu_memory_gb": 15.5, "validation_loss": 1.3}
    more = {"elapsed_seconds": 431.0, "eta_seconds": 3725.0}
    view.on_event(event("stage.progress", Stage.TRAIN, **fields, **speed, **more))
    view.on_event(event("stage.log", Stage.TRAIN, message="a long line " * 30))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=not colours)
    console._encoding = "utf-8"  # what a terminal has; a StringIO has none
    console.print(view.renderable())
    lines = Text.from_ansi(console.file.getvalue()).plain.splitlines()
    assert len(lines) == 7  # headline, five stages, the log: none is folded
    assert max(map(len, lines)) <= width
    for line, stage in zip(lines[1:6], Stage, strict=True):
        assert line.startswith(f"{stage.value} ")
    train = lines[2]
    states = ["↺", "●", "○", "○", "○"] if colours else ["reused", "running", *["pending"] * 3]
    assert [line.split()[1] for line in lines[1:6]] == states
    assert "7 min 11 s" in train
    assert "55 %  1 h 02 min left" in train


@pytest.mark.parametrize("width", [24, 10])
def test_a_terminal_too_narrow_for_anything_ends_nothing(make_job, width):
    running = make_job(JobStatus.RUNNING, task(Stage.TRAIN, StageStatus.RUNNING))
    view = TableView(OneJob(running), running)
    view.on_event(event("stage.progress", Stage.TRAIN, percent=54.7, elapsed_seconds=431.0))
    assert text_of(view.renderable(), width)
