"""When memory runs out, training goes on with a smaller plan to the same end.

The shortage is made by a forward pass that refuses batches above a size, as an allocator would;
tests/train/test_gpu.py caps the allocator of a GPU instead. (Torch does not give back all that a failed
allocation on a CPU leaves, so a limit on the process shows torch, not the ladder.)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loco.errors import OutOfMemory
from loco.results import TrainResult
from loco.specs import Inputs, TrainSpec
from loco_trainer import engines, train
from loco_trainer.batches import Batch

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


def allow(monkeypatch: pytest.MonkeyPatch, *, rows: int, from_pass: int = 1) -> list[int]:
    """From a pass on, refuses batches of more rows; returns the rows of each pass that went well."""
    seen: list[int] = []
    asked = 0
    load = engines.load

    def loading(*arguments: Any) -> engines.Loaded:
        loaded = load(*arguments)

        def losses(batch: Batch) -> torch.Tensor:
            nonlocal asked
            asked += 1
            if asked >= from_pass and len(batch.answers) > rows:
                raise torch.OutOfMemoryError(_WORDS)
            seen.append(len(batch.answers))
            return loaded.losses(batch)

        return replace(loaded, losses=losses)

    monkeypatch.setattr(engines, "load", loading)
    return seen


def losses(result: TrainResult) -> list[float]:
    return [step.loss for step in result.log]


def test_the_micro_batch_is_halved_until_it_fits(
    recipe: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train.run(recipe, inputs, tmp_path / "whole", recorder)
    assert [(a.first_step, a.last_step, a.outcome) for a in whole.attempts] == [(1, 6, "finished")]
    # the first two steps go well, then there is room for two rows only
    seen = allow(monkeypatch, rows=2, from_pass=3)
    short = train.run(recipe, inputs, tmp_path / "short", recorder)
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
    assert "Out of memory at step 3 with 8 rows a forward pass; going on from step 2" in said


def test_with_one_row_a_pass_activations_are_computed_again(
    recipe: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train.run(recipe, inputs, tmp_path / "whole", recorder)
    load = engines.load

    def loading(*arguments: Any) -> engines.Loaded:
        loaded = load(*arguments)
        base = loaded.model.get_base_model()

        def losses(batch: Batch) -> torch.Tensor:
            if not base.is_gradient_checkpointing:
                raise torch.OutOfMemoryError(_WORDS)
            return loaded.losses(batch)

        return replace(loaded, losses=losses)

    monkeypatch.setattr(engines, "load", loading)
    short = train.run(recipe, inputs, tmp_path / "short", recorder)
    rungs = [(a.plan.micro_batch, a.plan.gradient_checkpointing) for a in short.attempts]
    assert rungs == [(8, False), (4, False), (2, False), (1, False), (1, True)]
    assert losses(short) == pytest.approx(losses(whole), rel=2e-2)


def test_below_the_floor_it_says_what_to_change(
    recipe: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allow(monkeypatch, rows=0)
    with pytest.raises(OutOfMemory, match=r"Tried to allocate 2.00 GiB\.$") as caught:
        train.run(recipe, inputs, tmp_path, recorder)
    assert caught.value.param == "train.max_length"
    assert "train.max_length" in (caught.value.hint or "")


def test_another_error_is_not_taken_for_a_shortage(
    recipe: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = engines.load

    def refuse(_batch: Batch) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(engines, "load", lambda *a: replace(load(*a), losses=refuse))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train.run(recipe, inputs, tmp_path, recorder)
