"""The score table as a person sees it."""

from io import StringIO

import pytest
from rich.console import Console

from loco.cli.summary import comparison_table, outcome
from loco.contracts.jobs import StageStatus, Task
from loco.contracts.plans import Lengths, Plan
from loco.contracts.results import Comparison, EvalResult, Score, TrainResult
from loco.contracts.stages import Stage


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


def test_scores_are_whole_on_a_terminal_of_80_columns() -> None:
    comparison = Comparison(
        set="benchmark",
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
        (0, 0, 0.91, "validation loss 0.910, lower than after any step: the base is kept, 170"),
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
