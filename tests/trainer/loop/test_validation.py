"""The loss on validation rows over a run, and `train.select`: which adapter is kept."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loco.contracts.errors import InvalidRequest, OutOfMemory, TrainingFailed
from loco.contracts.plans import Plan
from loco.contracts.specs import BaseModelSpec, Inputs, TrainSpec
from loco.stage.program import Stopped
from loco_trainer import train
from loco_trainer.data import rows
from loco_trainer.data.batches import Batch
from loco_trainer.engines import choose
from loco_trainer.engines.loaded import Loaded
from loco_trainer.loop import checkpoints
from loco_trainer.loop import fit as fitting

_ADAPTER = "adapter_model.safetensors"
_ANSWERS = ["Paris, of course", "Rome maybe", "London, they say"]
#: What the mean loss of an answer may be off by, nats a token: measured 1.4e-4 of 10.9 in bfloat16.
_ROUNDING = 1e-3


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"conversations": turns}) + "\n"


@pytest.fixture
def given(inputs: Inputs, tmp_path: Path) -> Inputs:
    """Eight sums to train on, and three rows of another kind to measure."""
    training, validation = tmp_path / "training.jsonl", tmp_path / "validation.jsonl"
    sums = [(3 * i + 2, 5 * i + 1) for i in range(8)]
    training.write_text(
        "".join(
            chat(f"What is {a} + {b}?", f"{a} + {b} = {a + b}. The answer is {a + b}")
            for a, b in sums
        )
    )
    validation.write_text("".join(chat(f"Capital {i}?", a) for i, a in enumerate(_ANSWERS)))
    files = {
        "prepare/training_data.jsonl": training,
        "prepare/validation_data.jsonl": validation,
    }
    return inputs.model_copy(update={"files": files})


@pytest.fixture
def rising(toy_spec: TrainSpec) -> TrainSpec:
    """Three epochs of two steps, with dropout; the validation loss is lowest after the second."""
    return toy_spec.model_copy(
        update={
            "learning_rate": 2e-2,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "select": "best",
        }
    )


def said(recorder: Any) -> str:
    return " ".join(event.message for event in recorder.of_type("log"))


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / _ADAPTER)


def same(first: Path, second: Path) -> bool:
    ours, theirs = adapter_of(first), adapter_of(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def loss_of(base: Path, adapter: Path | None, data: Path) -> float:
    """Mean loss of the answers by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    template = train._template(base, "You answer sums.")
    total, count = 0.0, 0
    for row in rows.read(data, template, max_length=128).rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != rows.IGNORED).sum())
    return total / count


def test_the_best_adapter_is_kept_and_its_losses_with_it(
    rising: TrainSpec, given: Inputs, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    result = train.run(rising, given, tmp_path / "best", recorder)
    steps = [point.step for point in result.validations]
    assert steps == [0, 2, 4, 6]
    assert [point.epoch for point in result.validations] == [0, 1, 2, 3]
    base, _, lowest, last = [point.loss for point in result.validations]
    assert lowest < min(base, last)  # what the test is about
    assert (result.best_step, result.selected_step) == (4, 4)
    assert result.best_validation_loss == result.validation_loss == lowest
    assert result.base_validation_loss == base
    assert result.validation_seconds > 0

    # as measured from the files by others' code; a CPU that is quick at bfloat16 computes in it here
    data = given.files["prepare/validation_data.jsonl"]
    assert min(base, last) - lowest > 20 * _ROUNDING
    assert loss_of(toy_dir, None, data) == pytest.approx(base, abs=_ROUNDING)
    adapter = tmp_path / "best" / "checkpoints"
    assert loss_of(toy_dir, adapter, data) == pytest.approx(lowest, abs=_ROUNDING)
    tokens = sum(row.tokens for row in result.validation)
    mean = sum(row.tokens * row.loss for row in result.validation) / tokens
    assert mean == pytest.approx(lowest)

    # a run that ends there leaves the same file
    two = rising.model_copy(update={"epochs": 2, "select": "last"})
    train.run(two, given, tmp_path / "two", recorder)
    assert same(tmp_path / "best", tmp_path / "two")
    assert "lowest after step 4 (epoch 2)" in said(recorder)
    assert "That adapter is kept." in said(recorder)
    shown = [e.progress.validation_loss for e in recorder.of_type("progress")]
    assert lowest in shown
    after = {
        e.progress.validation_loss: e.progress.validation_epoch
        for e in recorder.of_type("progress")
    }
    assert after[lowest] == 2


def test_measuring_changes_nothing_and_last_keeps_the_last(
    rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    spec = rising.model_copy(update={"select": "last"})
    result = train.run(spec, given, tmp_path / "measured", recorder)
    assert (result.best_step, result.selected_step) == (4, 6)
    assert result.validation_loss == result.validations[-1].loss
    assert "train.select: best would keep the earlier one" in said(recorder)
    alone = {n: p for n, p in given.files.items() if "validation" not in n}
    bare = train.run(spec, given.model_copy(update={"files": alone}), tmp_path / "bare", recorder)
    assert (bare.validations, bare.best_step, bare.selected_step) == ((), None, 6)
    assert [s.loss for s in result.log] == [s.loss for s in bare.log]
    assert same(tmp_path / "measured", tmp_path / "bare")


def test_a_run_that_ends_inside_an_epoch_is_measured_at_its_end(
    rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    spec = rising.model_copy(update={"max_steps": 3})
    result = train.run(spec, given, tmp_path, recorder)
    assert [(p.step, p.epoch) for p in result.validations] == [(0, 0), (2, 1), (3, 1.5)]


@pytest.mark.parametrize("at_step", [1, 3, 4, 5, 6])
def test_a_resumed_run_keeps_the_same_adapter(
    at_step: int, rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    whole = train.run(rising, given, tmp_path / "whole", recorder)
    stopping = type(recorder)(stop_at_step=at_step)
    try:
        train.run(rising, given, tmp_path / "a1", stopping)
    except Stopped:
        assert at_step < 6
    left = Path(stopping.of_type("checkpoint")[-1].path)
    assert checkpoints.step_of(left) == at_step
    again = train.run(
        rising, given.model_copy(update={"resume": (left,)}), tmp_path / "a2", recorder
    )
    assert again.validations == whole.validations
    assert (again.selected_step, again.validation) == (4, whole.validation)
    assert same(tmp_path / "a2", tmp_path / "whole")


def test_a_damaged_best_adapter_is_noticed(
    rising: TrainSpec,
    given: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_CHECKPOINT_COST", 0.0)
    train.run(rising, given, tmp_path / "whole", recorder)
    newest = tmp_path / "whole" / "checkpoints" / "checkpoint-5"
    before = tmp_path / "whole" / "checkpoints" / "checkpoint-4"
    best = newest / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    resumed = given.model_copy(update={"resume": (newest, before)})
    result = train.run(rising, resumed, tmp_path / "again", recorder)
    assert "Skipped checkpoint checkpoint-5: best.safetensors is damaged" in said(recorder)
    assert (result.resumed_from_step, result.selected_step) == (4, 4)
    assert same(tmp_path / "again", tmp_path / "whole")


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_stop_while_measuring_is_heard_and_measured_later(
    moment: int, rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    whole = train.run(rising, given, tmp_path / "whole", recorder)

    class Stopping(type(recorder)):  # type: ignore[misc]
        met = 0

        def progress(self, **fields: Any) -> None:
            super().progress(**fields)
            self.met += fields["message"].startswith("measuring")
            if self.met == moment:
                self.request_stop()

    stopping = Stopping()
    with pytest.raises(Stopped):
        train.run(rising, given, tmp_path / "a1", stopping)
    left = tuple(Path(event.path) for event in stopping.of_type("checkpoint"))
    assert [checkpoints.step_of(folder) for folder in left] == ([] if moment == 1 else [2 * moment - 2])  # fmt: skip
    resumed = given.model_copy(update={"resume": left})
    again = train.run(rising, resumed, tmp_path / "a2", recorder)
    assert again.validations == whole.validations
    assert same(tmp_path / "a2", tmp_path / "whole")


def test_a_rate_that_ruins_the_model_keeps_the_base_and_says_so(
    smollm2: BaseModelSpec, rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    spec = rising.model_copy(
        update={"base_model": smollm2, "learning_rate": 1e-1, "epochs": 1, "batch_size": 4}
    )
    result = train.run(spec, given, tmp_path, recorder)
    base, last = [point.loss for point in result.validations]
    assert last > base + 0.1  # what the test is about
    assert (result.best_step, result.selected_step) == (0, 0)
    assert result.validation_loss == result.base_validation_loss == base
    assert all(row.loss == row.base_loss for row in result.validation)
    added = {n: t for n, t in adapter_of(tmp_path).items() if "lora_B" in n}
    assert added
    assert not any(t.any() for t in added.values())
    assert "Warning: training made the validation loss worse every time" in said(recorder)
    assert "so the model equals the base. Try a lower train.learning_rate" in said(recorder)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Batch], bool]], None]:
    """Has passes that measure (those without gradients) run out of memory where a check says so."""

    def refusing(check: Callable[[Batch], bool]) -> None:
        load = choose.load

        def loading(*arguments: Any) -> Loaded:
            loaded = load(*arguments)

            def losses(batch: Batch) -> torch.Tensor:
                if not torch.is_grad_enabled() and check(batch):
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return loaded.losses(batch)

            return replace(loaded, losses=losses)

        monkeypatch.setattr(choose, "load", loading)

    return refusing


def test_too_little_memory_for_measuring_takes_fewer_rows(
    rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any, refuse: Any
) -> None:
    whole = train.run(rising, given, tmp_path / "whole", recorder)
    refuse(lambda batch: len(batch.answers) > 1)
    short = train.run(rising, given, tmp_path / "short", recorder)
    assert short.plan.micro_batch == whole.plan.micro_batch > 1
    assert len(short.attempts) == 1
    assert [p.loss for p in short.validations] == pytest.approx(
        [p.loss for p in whole.validations], abs=1e-5
    )
    assert same(tmp_path / "short", tmp_path / "whole")


def test_no_room_for_a_single_row_ends_the_measuring_only(
    rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any, refuse: Any
) -> None:
    asked = itertools.count(1)
    refuse(lambda _: next(asked) > 4)  # two passes measure the base, two the first epoch
    result = train.run(rising, given, tmp_path / "later", recorder)
    assert [p.step for p in result.validations] == [0, 2]
    assert (result.selected_step, len(result.log)) == (2, 6)
    assert result.validation_loss == result.validations[1].loss
    assert said(recorder).count("not even one validation row fits in memory") == 1

    refuse(lambda _: True)
    last = rising.model_copy(update={"select": "last"})
    blind = train.run(last, given, tmp_path / "blind", recorder)
    assert (blind.validations, blind.validation, blind.validation_loss) == ((), (), None)
    with pytest.raises(OutOfMemory):
        train.run(rising, given, tmp_path / "none", recorder)


def test_losses_of_a_base_held_otherwise_are_not_compared(
    rising: TrainSpec,
    given: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last rung loads the base in 4 bits, which needs a GPU: here it is held as before."""
    spec = rising.model_copy(update={"lora": rising.lora.model_copy(update={"dropout": 0.0})})
    whole = train.run(spec, given, tmp_path / "whole", recorder)

    def in_four_bits(*_: Any, **__: Any) -> Callable[[Plan], Plan | None]:
        return lambda plan, _: plan.model_copy(update={"precision": "4bit"})

    monkeypatch.setattr(train, "ladder", in_four_bits)
    load = choose.load
    trained = itertools.count(1)

    def loading(spec: TrainSpec, plan: Plan, *others: Any) -> Loaded:
        loaded = load(spec, plan.model_copy(update={"precision": "fp32"}), *others)

        def losses(batch: Batch) -> torch.Tensor:
            if torch.is_grad_enabled() and next(trained) == 11:  # two passes a step: the sixth
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return loaded.losses(batch)

        return replace(loaded, losses=losses)

    monkeypatch.setattr(choose, "load", loading)
    result = train.run(spec, given, tmp_path / "short", recorder)
    assert [a.plan.precision for a in result.attempts] == ["fp32", "4bit"]
    best = min(whole.validations[:3], key=lambda point: point.loss).step  # when memory ran out
    assert [p.step for p in result.validations] == sorted({0, best, 6})
    theirs = {p.step: p.loss for p in whole.validations}
    assert all(p.loss == pytest.approx(theirs[p.step], abs=1e-4) for p in result.validations)
    assert "Measuring the validation loss again" in said(recorder)
    assert [s.loss for s in result.log] == pytest.approx([s.loss for s in whole.log], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "why"), [("absent", "prepare kept none"), ("long", "longer than max_length")]
)
def test_best_without_rows_to_measure_is_refused_before_a_weight_is_loaded(
    change: str,
    why: str,
    rising: TrainSpec,
    given: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = dict(given.files)
    if change == "absent":
        del files["prepare/validation_data.jsonl"]
    else:
        files["prepare/validation_data.jsonl"].write_text(chat("long?", "so " * 300))
    monkeypatch.setattr(choose, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InvalidRequest, match=why) as refused:
        train.run(rising, given.model_copy(update={"files": files}), tmp_path, recorder)
    assert refused.value.param == "train.select"
    assert "prepare.validation" in str(refused.value.hint)


def test_a_loss_that_is_no_number_ends_the_run(
    rising: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = choose.load

    def loading(*arguments: Any) -> Loaded:
        loaded = load(*arguments)

        def losses(batch: Batch) -> torch.Tensor:
            found = loaded.losses(batch)
            return found if torch.is_grad_enabled() else found * float("nan")

        return replace(loaded, losses=losses)

    monkeypatch.setattr(choose, "load", loading)
    with pytest.raises(TrainingFailed, match="validation loss is not a number before training"):
        train.run(rising, given, tmp_path, recorder)
