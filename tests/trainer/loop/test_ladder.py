"""When memory runs out, training goes on with a smaller plan to the same end.

The shortage is made by a forward pass that refuses batches above a size, as an allocator would;
tests/trainer/test_gpu.py caps the allocator of a GPU instead. (Torch does not give back all that a failed
allocation on a CPU leaves, so a limit on the process shows torch, not the ladder.)
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loco.contracts.errors import OutOfMemory
from loco.contracts.plans import Plan, Shape
from loco.contracts.results import TrainResult
from loco.contracts.specs import Inputs, TrainSpec
from loco.stage.program import Stopped
from loco_trainer import train
from loco_trainer.bases.find import read_config
from loco_trainer.data.batches import Batch
from loco_trainer.data.rows import Row, Rows
from loco_trainer.engines import choose
from loco_trainer.engines.loaded import Loaded
from loco_trainer.loop import facts

_WORDS = "CUDA out of memory. Tried to allocate 2.00 GiB. Including non-PyTorch memory, more"


@pytest.fixture
def recipe(toy_spec: TrainSpec) -> TrainSpec:
    """Six steps of eight rows, without dropout, whose draws would follow the batches."""
    return toy_spec.model_copy(
        update={
            "batch_size": 8,
            "gradient_accumulation": 1,
            "epochs": 2,
            "lora": toy_spec.lora.model_copy(update={"dropout": 0.0}),
        }
    )


@pytest.fixture
def run(
    recipe: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> Callable[[str], TrainResult]:
    """Trains the recipe into a folder of that name."""
    return lambda name: train.run(recipe, inputs, tmp_path / name, recorder)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], list[int]]:
    """Has passes fail as asked; gives the rows of each pass that goes well.

    What is asked for gets the batch and the base model, and raises or does nothing.
    """

    def refusing(check: Callable[[Batch, Any], None]) -> list[int]:
        seen: list[int] = []
        load = choose.load

        def loading(*arguments: Any) -> Loaded:
            loaded = load(*arguments)
            base = loaded.model.get_base_model()

            def losses(batch: Batch) -> torch.Tensor:
                check(batch, base)
                seen.append(len(batch.answers))
                return loaded.losses(batch)

            return replace(loaded, losses=losses)

        monkeypatch.setattr(choose, "load", loading)
        return seen

    return refusing


def short_of(when: bool) -> None:
    if when:
        raise torch.OutOfMemoryError(_WORDS)


def losses(result: TrainResult) -> list[float]:
    return [step.loss for step in result.log]


def test_the_micro_batch_is_halved_until_it_fits(run: Any, refuse: Any, recorder: Any) -> None:
    whole = run("whole")
    assert [(a.first_step, a.last_step, a.outcome) for a in whole.attempts] == [(1, 6, "finished")]
    asked = itertools.count(1)
    # the first two steps go well, then there is room for two rows only
    seen = refuse(lambda batch, _: short_of(next(asked) > 2 and len(batch.answers) > 2))
    short = run("short")
    assert seen == [8, 8] + [2] * 16
    assert losses(short) == pytest.approx(losses(whole), rel=2e-2)
    tried = [(a.plan.micro_batch, a.plan.accumulation, a.first_step, a.last_step, a.outcome)
             for a in short.attempts]  # fmt: skip
    assert tried == [
        (8, 1, 1, 2, "out_of_memory"),
        (4, 2, 3, 2, "out_of_memory"),
        (2, 4, 3, 6, "finished"),
    ]
    assert short.plan == short.attempts[-1].plan
    assert [s.step for s in short.log] == list(range(1, 7))
    said = " ".join(event.message for event in recorder.of_type("log"))
    assert "Out of memory at step 3 with 8 rows per forward pass. Continuing from step 2" in said


def test_with_one_row_a_pass_activations_are_computed_again(run: Any, refuse: Any) -> None:
    whole = run("whole")
    refuse(lambda _, base: short_of(not base.is_gradient_checkpointing))
    short = run("short")
    rungs = [(a.plan.micro_batch, a.plan.gradient_checkpointing) for a in short.attempts]
    assert rungs == [(8, False), (4, False), (2, False), (1, False), (1, True)]
    assert losses(short) == pytest.approx(losses(whole), rel=2e-2)


def test_the_base_is_loaded_again_where_the_next_plan_holds_it_in_4_bits(
    run: Any, refuse: Any, monkeypatch: pytest.MonkeyPatch, recorder: Any
) -> None:
    whole = run("whole")
    loads: list[Any] = []

    def in_four_bits(*_: Any, **__: Any) -> Callable[[Plan], Plan | None]:
        return lambda plan, _: plan.model_copy(update={"precision": "4bit"})

    monkeypatch.setattr(train, "ladder", in_four_bits)
    asked = itertools.count(1)
    refuse(lambda *_: short_of(next(asked) == 3))
    load = choose.load

    def counting(spec: TrainSpec, plan: Plan, *others: Any) -> Loaded:
        if loads:  # the first base holds no memory any more
            frozen = [p for p in loads[0][1].parameters() if not p.requires_grad]
            assert frozen
            assert not any(p.numel() for p in frozen)
        # 4 bits need a GPU: here the base is held as before
        loaded = load(spec, plan.model_copy(update={"precision": "fp32"}), *others)
        loads.append((plan.precision, loaded.model))
        return loaded

    monkeypatch.setattr(choose, "load", counting)
    short = run("short")
    assert [precision for precision, _ in loads] == ["fp32", "4bit"]
    assert losses(short) == pytest.approx(losses(whole), rel=1e-4)
    tried = [(a.plan.precision, a.first_step, a.last_step, a.outcome) for a in short.attempts]
    assert tried == [("fp32", 1, 2, "out_of_memory"), ("4bit", 3, 6, "finished")]
    said = " ".join(event.message for event in recorder.of_type("log"))
    assert "the base in 4 bits" in said


def test_a_resumed_run_begins_with_the_plan_that_worked(
    recipe: TrainSpec, inputs: Inputs, tmp_path: Path, refuse: Any, recorder: Any
) -> None:
    refuse(lambda batch, _: short_of(len(batch.answers) > 2))
    with pytest.raises(Stopped):
        train.run(recipe, inputs, tmp_path / "first", type(recorder)(stop_at_step=2))
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-2"
    resumed = inputs.model_copy(update={"resume": (checkpoint,)})
    result = train.run(recipe, resumed, tmp_path / "second", recorder)
    tried = [(a.plan.micro_batch, a.first_step, a.last_step, a.outcome) for a in result.attempts]
    assert tried == [
        (8, 1, 0, "out_of_memory"),
        (4, 1, 0, "out_of_memory"),
        (2, 1, 2, "stopped"),
        (2, 3, 6, "finished"),
    ]
    assert result.resumed_from_step == 2


def test_a_plan_that_worked_elsewhere_is_made_anew_here(
    recipe: TrainSpec, toy_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, data = Shape.of(read_config(toy_dir)), Rows([Row([1] * 20, [1] * 20)] * 8, 0, 0)
    worked = facts.plan_for(recipe, shape, data, "peft").model_copy(update={"micro_batch": 2})

    def again(plan: Plan) -> int:
        return facts.plan_for(recipe, shape, data, "peft", worked=plan).micro_batch

    assert again(worked) == 2
    assert again(worked.model_copy(update={"device": "NVIDIA H200"})) == 8
    assert again(worked.model_copy(update={"memory_gb": 10_000.0})) == 8


def test_below_the_floor_it_says_what_to_change(run: Any, refuse: Any, recorder: Any) -> None:
    refuse(lambda *_: short_of(True))
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 2.00 GiB\.$") as caught:
        run("short")
    assert caught.value.param == "train.max_length"
    assert "train.max_length" in (caught.value.hint or "")
    tried = recorder.of_type("progress")[-1].progress.tried
    assert [(a.plan.micro_batch, a.outcome) for a in tried][:2] == [
        (8, "out_of_memory"),
        (4, "out_of_memory"),
    ]


def test_a_shortage_without_words_is_one(run: Any, refuse: Any) -> None:
    def silent(batch: Batch, _: Any) -> None:
        if len(batch.answers) > 4:
            raise MemoryError

    refuse(silent)
    assert [a.outcome for a in run("short").attempts] == ["out_of_memory", "finished"]


def test_an_error_that_came_of_a_shortage_is_one(run: Any, refuse: Any) -> None:
    def recording(batch: Batch, _: Any) -> None:
        try:
            short_of(len(batch.answers) > 4)
        except torch.OutOfMemoryError:
            # as `torch.cuda.graph` does when it is left by an error
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904

    refuse(recording)
    assert [a.outcome for a in run("short").attempts] == ["out_of_memory", "finished"]


def test_another_error_is_not_taken_for_a_shortage(run: Any, refuse: Any) -> None:
    def other(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    refuse(other)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("broken")
