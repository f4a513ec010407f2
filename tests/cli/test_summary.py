"""The score table as a person sees it."""

from collections.abc import Callable
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from loco.cli.summary import comparison_table, outcome, render, serving
from loco.contracts.evaluation import Baseline, GateResult, Verdict
from loco.contracts.jobs import Job, JobStatus, StageStatus, Task
from loco.contracts.plans import Lengths, Plan
from loco.contracts.program_events import Progress
from loco.contracts.results import (
    Comparison,
    Dropped,
    EvalResult,
    HeldBackRows,
    PrepareResult,
    Sampling,
    Score,
    TrainResult,
)
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Stage
from loco.contracts.versions import Promotion


def score(model: str, correct: int, low: float, high: float) -> Score:
    return Score(
        model=model,
        correct=correct,
        total=100,
        accuracy=correct / 100,
        low=low,
        high=high,
        unfinished=0,
        seconds=1,
    )


@pytest.mark.parametrize("against", [Baseline.BASE, Baseline.INSTRUCTED])
def test_scores_are_whole_on_a_terminal_of_80_columns(against: Baseline) -> None:
    comparison = Comparison(
        set="held_out",
        against=against,
        base=score("smollm2:135m", 27, 0.193, 0.364),
        candidate=score("locollm-math:20261122-164524-8d2d68", 100, 0.963, 1.0),
        gain=0.73,
        won=73,
        lost=0,
        p_value=2e-22,
    )
    result = EvalResult(
        seconds=1,
        files={},
        base_model="smollm2:135m",
        candidate="locollm-math:20261122-164524-8d2d68",
        comparisons=(comparison,),
    )
    output = StringIO()
    Console(width=80, file=output).print(comparison_table(result))
    for whole in ("27/100, 27 % (19-36)", "100/100, 100 % (96-100)", "+73 pts", "< 0.0001"):
        assert whole in output.getvalue()
    assert "…" not in output.getvalue()


PLAN = Plan(
    engine="peft",
    precision="fp32",
    micro_batch=8,
    accumulation=1,
    gradient_checkpointing=False,
    padding_free=True,
    max_length=87,
    memory_gb=2.9,
    device="cpu",
    free_gb=16.0,
    step_seconds=2.7,
    train_seconds=70,
)


SAMPLING = Sampling(
    model="qwen3:4b",
    digest="d" * 64,
    server_version="0.12.0",
    questions=260,
    asked=432,
    known=32,
    right=240,
    unfinished=3,
    pass_rate=0.554,
    solved=236,
    rows_by_tries={1: 140, 2: 41, 3: 12, 4: 0},
    hinted=4,
    gold=3,
    pairs=50,
    tokens=123_456,
    tokens_per_second=88.2,
    advice=("Take gold rows.",),
)


def prepared(sampling: Sampling | None) -> Task:
    result = PrepareResult(
        seconds=70,
        files={},
        source="the base's own answers",
        read=7473,
        kept=200,
        validation=32,
        dropped=Dropped(),
        overlaps=(),
        eval_items_checked=0,
        sampling=sampling,
    )
    return Task(
        task_id="j-prepare",
        job_id="j",
        stage=Stage.PREPARE,
        status=StageStatus.SUCCEEDED,
        result=result.model_dump(mode="json"),
    )


def test_prepare_says_what_became_of_the_answers_it_asked_for() -> None:
    assert outcome(prepared(SAMPLING)) == (
        "200 rows and 32 for validation (140 at try 1, 41 at try 2, 12 at try 3, 4 with a hint, 3 gold) and 50 pairs from "
        "432 answers of qwen3:4b to 260 questions: 55.4 % right at the first try, 3 cut, 32 reused, 88 tokens/s"
    )
    nothing = {"known": 0, "unfinished": 0, "tokens_per_second": None, "pairs": 0, "hinted": 0}
    plain = SAMPLING.model_copy(update={**nothing, "gold": 0, "rows_by_tries": {1: 200}})
    assert outcome(prepared(plain)) == (
        "200 rows and 32 for validation (200 at try 1) from 432 answers of qwen3:4b to 260 questions: 55.4 % right at the first try"
    )
    assert outcome(prepared(None)) == "200 of 7473 rows and 32 for validation"


@pytest.mark.parametrize("told", [True, False])
def test_the_advice_of_prepare_stands_below_the_stages(
    spec: Callable[..., JobSpec], *, told: bool
) -> None:
    sampling = SAMPLING if told else SAMPLING.model_copy(update={"advice": ()})
    job = Job(
        id="j",
        adapter="math",
        profile="default",
        status=JobStatus.RUNNING,
        stages=(prepared(sampling),),
        spec=spec(),
        created_at=datetime(2026, 11, 28, tzinfo=UTC),
    )
    output = StringIO()
    Console(width=200, file=output).print(render(job))
    lines = [line.split(None, 1) for line in output.getvalue().splitlines() if line.strip()]
    assert (["advice", "Take gold rows."] in [[w.rstrip() for w in line] for line in lines]) == told


def measured(spec: Callable[..., JobSpec], result: EvalResult, **more: Any) -> Job:
    """A job that ended with this eval."""
    fields = {"task_id": "j-eval", "job_id": "j", "stage": Stage.EVAL}
    return Job(
        id="j",
        adapter="math",
        profile="gold",
        status=JobStatus.SUCCEEDED,
        stages=(Task(**fields, status="succeeded", result=result.model_dump(mode="json")),),
        spec=spec(),
        created_at=datetime(2026, 11, 28, tzinfo=UTC),
        finished_at=datetime(2026, 11, 28, tzinfo=UTC),
        **more,
    )


@pytest.mark.parametrize("promoted", [True, False])
def test_what_to_try_stands_beside_a_version_of_which_no_gain_is_shown(
    spec: Callable[..., JobSpec], *, promoted: bool
) -> None:
    """Advice was only shown of refused ones before."""
    gate = GateResult(
        verdict=Verdict.UNPROVEN, policy="not_worse", reasons=("The same.",), advice=("Take own.",)
    )
    result = EvalResult(
        seconds=1, files={}, base_model="b", candidate="m:j", comparisons=(), gate=gate
    )
    job = measured(
        spec,
        result,
        promotion=Promotion(version=1, model="m", promoted=promoted, reason="Why not."),
    )
    output = StringIO()
    Console(width=200, file=output).print(serving(job))
    said = [
        [word.rstrip() for word in line.split(None, 1)] for line in output.getvalue().splitlines()
    ]
    assert ["advice", "Take own."] in said
    # what is measured alone does not know whether Ollama has a command here
    assert ["try", "loco chat math --version 1 --side-by-side"] in said


def evaluated(spec: Callable[..., JobSpec], *warnings: str) -> str:
    result = EvalResult(
        seconds=1, files={}, base_model="b", candidate="m:j", comparisons=(), warnings=warnings
    )
    output = StringIO()
    Console(width=200, file=output).print(render(measured(spec, result)))
    return output.getvalue()


def test_what_makes_the_figures_less_trustworthy_is_on_the_screen(
    spec: Callable[..., JobSpec],
) -> None:
    """It stood in report.md alone."""
    assert "Warning: 7 of 20 answers were cut." in evaluated(spec, "7 of 20 answers were cut.")
    assert "Warning" not in evaluated(spec)


def test_a_running_stage_says_how_far_it_is() -> None:
    progress = Progress(percent=50, step=10, total_steps=20, eta_seconds=90)
    task = Task(
        task_id="j-train", job_id="j", stage=Stage.TRAIN, status="running", progress=progress
    )
    assert outcome(task) == "1 min 30 s left, step 10/20"
    assert outcome(task.model_copy(update={"status": StageStatus.QUEUED})) == ""


def trained(**fields: object) -> Task:
    result = TrainResult(
        seconds=70,
        files={},
        engine="peft",
        device="cpu",
        dtype="float32",
        base_model="smollm2-135m-instruct",
        examples=160,
        tokens=10_289,
        trainable_parameters=1000,
        total_steps=60,
        first_loss=1.0,
        last_loss=0.5,
        train_seconds=60.0,
        tokens_per_second=170.0,
        peak_gpu_memory_gb=0,
        log=(),
        plan=PLAN,
        attempts=(),
        lengths=Lengths(rows=160, tokens=10_289, answer_tokens=3_186, p50=64, p95=80, longest=87),
        start_seconds=4.0,
        step_seconds=1.0,
    ).model_copy(update=fields)
    return Task(
        task_id="j-train",
        job_id="j",
        stage=Stage.TRAIN,
        status=StageStatus.SUCCEEDED,
        result=result.model_dump(mode="json"),
    )


@pytest.mark.parametrize(
    ("kept", "best", "loss", "words"),
    [
        (60, 60, 0.25, "steps, validation loss 0.910 → 0.250, 170 tokens/s"),
        (20, 20, 0.25, "steps, validation loss 0.910 → 0.250 at step 20 (best, kept), 170"),
        (60, 20, 0.5, "steps, validation loss 0.910 → 0.500 (lowest 0.250 at step 20), 170"),
        (0, 0, 0.91, "validation loss 0.910, lower than after any step, so the base is kept, 170"),
    ],
)
def test_train_says_which_adapter_is_kept(kept: int, best: int, loss: float, words: str) -> None:
    task = trained(
        selected_step=kept,
        best_step=best,
        best_validation_loss=min(loss, 0.25) if best else 0.91,
        validation_loss=loss,
        base_validation_loss=0.91,
    )
    assert words in outcome(task)


def test_train_without_validation_rows_says_nothing_of_them() -> None:
    assert "validation" not in outcome(trained())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (20, "apart from 20 eval problems (20 of them rows held back, grader words)"),
        (0, "none held back"),
    ],
)
def test_rows_held_back_are_in_the_summary(rows: int, said: str) -> None:
    prepare = PrepareResult(
        seconds=1,
        files={},
        source="rows",
        read=60,
        kept=40,
        dropped=Dropped(),
        overlaps=(),
        eval_items_checked=rows,
        eval_sets={"split": rows} if rows else {},
        held_back=HeldBackRows(
            set="split", rows=rows, grader="words" if rows else None, why="short texts"
        ),
    )
    done = prepared(None).model_copy(update={"result": prepare.model_dump(mode="json")})
    assert said in outcome(done)
