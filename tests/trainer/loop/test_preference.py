"""The part on pairs: its loss and gradient, its steps, and what a stop or a shortage leaves of it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, logsigmoid

from loco.contracts.errors import InvalidRequest, TrainingFailed
from loco.contracts.results import TrainResult
from loco.contracts.specs import Inputs, PreferenceSpec, TrainSpec
from loco.stage.program import Stopped
from loco_trainer import train
from loco_trainer.data import batches
from loco_trainer.data.batches import Batch
from loco_trainer.data.pairs import Pair
from loco_trainer.data.rows import IGNORED, Row
from loco_trainer.engines import choose
from loco_trainer.engines.loaded import Loaded
from loco_trainer.fast import attention, forward
from loco_trainer.loop import checkpoints
from loco_trainer.loop.adapter_state import AdapterState
from loco_trainer.loop.preference import PairPasses

_ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def given(inputs: Inputs, preference_data: Path) -> Inputs:
    """24 sums, and 12 pairs."""
    files = {**inputs.files, "prepare/preference_data.jsonl": preference_data}
    return inputs.model_copy(update={"files": files})


@pytest.fixture
def recipe(toy_spec: TrainSpec) -> TrainSpec:
    """Six steps on rows, with dropout, and six on pairs."""
    given = PreferenceSpec(learning_rate=5e-3, beta=0.5, nll=0.2, epochs=2, batch_size=4)
    return toy_spec.model_copy(update={"epochs": 1, "preference": given})


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / _ADAPTER)


def same(first: Path, second: Path) -> bool:
    ours, theirs = adapter_of(first), adapter_of(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# --- the loss


def some_pairs() -> list[Pair]:
    generator = torch.Generator().manual_seed(3)

    def row(prompt: list[int], answer: int) -> Row:
        ids = torch.randint(2, 320, (answer,), generator=generator).tolist()
        return Row(prompt + ids, [IGNORED] * len(prompt) + ids)

    pairs = []
    for before, right, wrong in [(5, 9, 4), (8, 3, 12), (2, 7, 7), (6, 5, 5)]:
        prompt = torch.randint(2, 320, (before,), generator=generator).tolist()
        pairs.append(Pair(row(prompt, right), row(prompt, wrong)))
    return pairs


def toy_model(attention_name: str, *, base: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model.set_attn_implementation(attention_name)
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    )
    torch.manual_seed(2)
    with torch.no_grad():  # B starts at zero: the adapter that is the reference
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not base:
                parameter.normal_(std=0.3)
    return model


def log_likelihoods(model: Any, pair: Pair) -> list[torch.Tensor]:
    """Sums over the answers' tokens by transformers and torch alone."""
    found = []
    for row in pair.rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        found.append(-cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
    return found


GIVEN = PreferenceSpec(beta=0.1, nll=0.2)


def plain_loss(
    model: Any, pairs: list[Pair], reference: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """arXiv:2305.18290 eq. 7, written out; and the margins."""
    losses, margins = [], []
    for pair, (ref_right, ref_wrong) in zip(pairs, reference, strict=True):
        right, wrong = log_likelihoods(model, pair)
        margin = (right - ref_right) - (wrong - ref_wrong)
        tokens = sum(label != IGNORED for label in pair.chosen.labels)
        losses.append(-logsigmoid(GIVEN.beta * margin) - GIVEN.nll * right / tokens)
        margins.append(margin.item())
    return torch.stack(losses).mean(), margins


def reference_of(pairs: list[Pair]) -> torch.Tensor:
    model = toy_model("eager", base=True)
    with torch.no_grad():
        return torch.tensor([[float(x) for x in log_likelihoods(model, p)] for p in pairs])


@pytest.mark.parametrize("layout", ["end to end", "padded"])
@pytest.mark.parametrize("size", [1, 3])
def test_every_layout_and_split_gives_the_plain_loss_and_gradient(layout: str, size: int) -> None:
    pairs = some_pairs()
    reference = reference_of(pairs)
    plain = toy_model("eager")
    expected, margins = plain_loss(plain, pairs, reference)
    expected.backward()
    wanted = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}

    model = toy_model(attention.NAME if layout == "end to end" else "sdpa")
    lay_out: Any = batches.end_to_end
    if layout == "padded":
        lay_out = lambda rows: batches.padded(rows, filler=0)  # noqa: E731
    loaded = Loaded(model, "float32", lay_out, forward.losses_of(model, tight=False), lambda: None)
    adapter = AdapterState(
        model, TrainSpec.model_construct(max_grad_norm=1e9, learning_rate=1, weight_decay=0)
    )
    passes = PairPasses(loaded, adapter, GIVEN)
    passes.start_step(len(pairs))
    for start in range(0, len(pairs), size):
        part = slice(start, start + size)
        passes.run(passes.lay_out(pairs[part], reference[part]))
    loss, accuracy, margin = passes.figures.tolist()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert accuracy == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert margin == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert {m > 0 for m in margins} == {True, False}  # what is compared has both signs
    ours = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() / gradient.norm() < 1e-5, name


# --- the steps


@pytest.fixture
def whole(recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any) -> TrainResult:
    return train.run(recipe, given, tmp_path / "whole", recorder)


def test_the_pairs_follow_the_rows_and_are_told_apart(
    whole: TrainResult, recipe: TrainSpec, recorder: Any
) -> None:
    assert [s.part for s in whole.log] == ["training"] * 6 + ["preference"] * 6
    assert [s.step for s in whole.log] == list(range(1, 13))
    rows, pairs = whole.log[:6], whole.log[6:]
    assert [s.epoch for s in pairs] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-4)
    assert {s.accuracy for s in rows} == {None}
    assert (pairs[0].accuracy, pairs[0].margin) == (0, pytest.approx(0, abs=1e-4))
    assert pairs[-1].accuracy == 1
    assert (pairs[-1].margin or 0) > 1
    # a schedule of its own, from its own rate
    assert max(s.learning_rate for s in pairs) == recipe.preference.learning_rate  # type: ignore[union-attr]
    assert pairs[0].learning_rate > pairs[-1].learning_rate > 0

    told = whole.preference
    assert told is not None
    assert (told.pairs, told.left_out, told.steps) == (12, 0, 6)
    assert (told.first_loss, told.last_loss) == (pairs[0].loss, pairs[-1].loss)
    assert (told.first_accuracy, told.last_accuracy) == (0, 1)
    assert told.margin == pairs[-1].margin
    assert told.seconds > told.reference_seconds > 0
    assert whole.last_loss == rows[-1].loss
    assert (whole.total_steps, whole.selected_step) == (12, 12)
    assert whole.lengths.pairs is not None
    assert whole.lengths.pairs.rows == 24
    assert [a.outcome for a in whole.attempts] == ["finished"]

    steps = [e.progress for e in recorder.of_type("progress") if e.progress.loss is not None]
    assert [p.message for p in steps] == ["training"] * 6 + ["preference"] * 6
    assert {p.total_steps for p in steps} == {12}
    assert steps[5].percent == 50
    assert (steps[5].eta_seconds or 0) > 0
    assert steps[-1].eta_seconds == 0


def test_the_first_loss_is_that_of_the_reference_itself(
    whole: TrainResult, recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    """log 2 + nll * the right answers' own loss, with dropout in the recipe; measured on rows apart."""
    lines = given.files["prepare/preference_data.jsonl"].read_text().splitlines()
    right = [{"conversations": [*row["prompt"], *row["chosen"]]} for row in map(json.loads, lines)]
    path = tmp_path / "right.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in right))
    inputs = given.model_copy(
        update={"files": {**given.files, "prepare/validation_data.jsonl": path}}
    )
    given_ = recipe.preference.model_copy(update={"batch_size": 12})  # type: ignore[union-attr]
    spec = recipe.model_copy(update={"preference": given_})
    result = train.run(spec, inputs, tmp_path / "all", recorder)
    assert [point.step for point in result.validations] == [0, 6, 8]
    before = result.validations[1].loss  # tokens weigh alike there, answers here
    assert [r.tokens for r in result.validation]
    assert result.log[6].loss == pytest.approx(math.log(2) + given_.nll * before, rel=0.02)
    assert result.log[6].margin == pytest.approx(0, abs=1e-4)


def test_the_rows_part_is_that_of_a_run_without_pairs(
    whole: TrainResult, recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    alone = train.run(
        recipe.model_copy(update={"preference": None}), given, tmp_path / "alone", recorder
    )
    assert [s.loss for s in alone.log] == [s.loss for s in whole.log[:6]]
    assert alone.preference is None
    assert alone.plan.pairs is None


@pytest.mark.parametrize("step", [3, 6, 9])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    whole: TrainResult, recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any, step: int
) -> None:
    with pytest.raises(Stopped):
        train.run(recipe, given, tmp_path / "first", type(recorder)(stop_at_step=step))
    checkpoint = tmp_path / "first" / "checkpoints" / f"checkpoint-{step}"
    resumed = given.model_copy(update={"resume": (checkpoint,)})
    result = train.run(recipe, resumed, tmp_path / "second", recorder)
    assert result.resumed_from_step == step
    assert result.log == whole.log
    assert same(tmp_path / "whole", tmp_path / "second")
    measured = result.preference.reference_seconds if result.preference else -1
    assert (measured == 0) == (step == 9)  # the checkpoint has it


def test_a_stop_while_the_reference_is_measured_loses_no_step(
    whole: TrainResult, recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    class Impatient(type(recorder)):  # type: ignore[misc]
        def progress(self, *, last: bool = False, **fields: Any) -> None:
            super().progress(last=last, **fields)
            if fields.get("message") == "measuring the reference":
                self.request_stop()

    with pytest.raises(Stopped):
        train.run(recipe, given, tmp_path / "first", Impatient())
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-6"
    resumed = given.model_copy(update={"resume": (checkpoint,)})
    result = train.run(recipe, resumed, tmp_path / "second", recorder)
    assert result.log == whole.log
    assert same(tmp_path / "whole", tmp_path / "second")


def killed_on_pairs(spec: TrainSpec, given: Inputs, out: Path, recorder: Any) -> None:
    """A run that ends with its eighth step, the second on pairs, and leaves nothing of it."""

    class Killed(type(recorder)):  # type: ignore[misc]
        def progress(self, *, last: bool = False, **fields: Any) -> None:
            if fields.get("step") == 8 and fields.get("loss"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(spec, given, out, Killed())


def test_a_kill_goes_on_from_the_reference_at_the_latest(
    whole: TrainResult,
    recipe: TrainSpec,
    given: Inputs,
    tmp_path: Path,
    recorder: Any,
) -> None:
    killed_on_pairs(recipe, given, tmp_path / "first", recorder)
    (checkpoint,) = (tmp_path / "first" / "checkpoints").glob("checkpoint-*")
    assert (
        checkpoint.name == "checkpoint-6"
    )  # steps take milliseconds: none is due but the reference's
    resumed = given.model_copy(update={"resume": (checkpoint,)})
    result = train.run(recipe, resumed, tmp_path / "second", recorder)
    assert result.log == whole.log
    assert same(tmp_path / "whole", tmp_path / "second")


def test_pairs_have_no_dropout_after_the_losses_were_measured_again(
    recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    """A checkpoint at the end of the rows, of a base held otherwise: their loss is measured late."""
    rows = given.files["prepare/training_data.jsonl"].read_text().splitlines(keepends=True)[:5]
    (tmp_path / "validation.jsonl").write_text("".join(rows))
    files = {**given.files, "prepare/validation_data.jsonl": tmp_path / "validation.jsonl"}
    spec = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"dropout": 0.3})})
    given = given.model_copy(update={"files": files})
    killed_on_pairs(spec, given, tmp_path / "first", recorder)
    checkpoint = tmp_path / "first" / "checkpoints" / "checkpoint-6"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["plan"] |= {"precision": "bf16", "device": "another"}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    checkpoints.seal(checkpoint)
    resumed = given.model_copy(update={"resume": (checkpoint,)})
    result = train.run(spec, resumed, tmp_path / "second", recorder)
    assert "Measuring the validation loss again" in " ".join(
        e.message for e in recorder.of_type("log")
    )
    assert [point.step for point in result.validations] == [0, 6, 12]
    assert result.log[6].margin == pytest.approx(0, abs=1e-4)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has forward passes fail as an allocator would: a function of the batch decides."""
    load = choose.load

    def make(short: Callable[[Batch], bool]) -> None:
        def loading(*arguments: Any) -> Loaded:
            loaded = load(*arguments)

            def losses(batch: Batch) -> torch.Tensor:
                if short(batch):
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return loaded.losses(batch)

            return replace(loaded, losses=losses)

        monkeypatch.setattr(choose, "load", loading)

    return make


def test_a_shortage_on_pairs_goes_on_with_fewer_a_pass(
    whole: TrainResult,
    recipe: TrainSpec,
    given: Inputs,
    tmp_path: Path,
    refuse: Any,
    recorder: Any,
) -> None:
    wide = recipe.model_copy(update={"batch_size": 4, "gradient_accumulation": 1})
    undisturbed = train.run(wide, given, tmp_path / "wide", recorder)
    assert undisturbed.plan.pairs == 2
    steps = iter(range(100))

    def late(batch: Batch) -> bool:
        # the rows' passes are six of four rows; then pairs, two of them a pass
        return torch.is_grad_enabled() and len(batch.answers) == 4 and next(steps) >= 6

    refuse(late)
    result = train.run(wide, given, tmp_path / "short", recorder)
    tried = [(a.plan.pairs, a.first_step, a.last_step, a.outcome) for a in result.attempts]
    assert tried == [(2, 1, 6, "out_of_memory"), (1, 7, 12, "finished")]
    assert [(a.pairs_from, a.ended_on_pairs) for a in result.attempts] == [(7, True)] * 2
    assert [s.loss for s in result.log] == pytest.approx(
        [s.loss for s in undisturbed.log], rel=1e-2
    )


def test_a_loss_that_is_no_number_names_the_rate_of_the_pairs(
    recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairPasses, "logs", lambda *_: torch.full((1, 2), float("nan")))
    with pytest.raises(TrainingFailed, match="not a number at step 7") as caught:
        train.run(recipe, given, tmp_path / "wild", recorder)
    assert caught.value.param == "train.preference.learning_rate"
    assert "preference_data.jsonl" in (caught.value.hint or "")


def test_pairs_begin_from_the_best_of_the_rows_and_are_kept_as_they_end(
    recipe: TrainSpec, given: Inputs, tmp_path: Path, recorder: Any
) -> None:
    def chat(question: str, answer: str) -> str:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return json.dumps({"conversations": turns}) + "\n"

    # as in test_validation: the loss is lowest after the second of three epochs
    sums = [(3 * i + 2, 5 * i + 1) for i in range(8)]
    lines = {
        "training": [
            chat(f"What is {a} + {b}?", f"{a} + {b} = {a + b}. The answer is {a + b}")
            for a, b in sums
        ],
        "validation": [
            chat(f"Capital {i}?", answer)
            for i, answer in enumerate(["Paris, of course", "Rome maybe", "London, they say"])
        ],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    files = {f"prepare/{name}_data.jsonl": tmp_path / f"{name}.jsonl" for name in lines}
    inputs = given.model_copy(update={"files": {**given.files, **files}})
    rising = recipe.model_copy(
        update={
            "epochs": 3,
            "learning_rate": 2e-2,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "select": "best",
        }
    )
    rows_alone = train.run(
        rising.model_copy(update={"preference": None}), inputs, tmp_path / "rows", recorder
    )
    assert (rows_alone.selected_step, rows_alone.total_steps) == (4, 6)  # what the test is about
    result = train.run(rising, inputs, tmp_path / "pairs", recorder)
    last = result.validations[-1]
    assert last.step == result.total_steps == result.selected_step == 12
    assert result.validation_loss == last.loss
    assert result.validations[:-1] == rows_alone.validations
    checkpoint = tmp_path / "pairs" / "checkpoints" / "checkpoint-6"  # the reference's
    begun, best = load_file(checkpoint / _ADAPTER), adapter_of(tmp_path / "rows")
    assert all(torch.equal(begun[name], best[name]) for name in best)


def test_pairs_that_are_not_there_are_asked_for(
    recipe: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        train.run(recipe, inputs, tmp_path, recorder)
    assert caught.value.param == "train.preference"
    assert "prepare.source.pairs" in (caught.value.hint or "")
