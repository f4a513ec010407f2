"""Stage train on the toy model: what the spec says is what happens, and a stopped run goes on."""

import json
import math
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from loco.contracts.errors import DiskFull, TrainingFailed
from loco.contracts.program_events import Progress
from loco.contracts.results import TrainResult
from loco.contracts.specs import Inputs, TrainSpec
from loco.planning.batches import total_steps
from loco.stage.program import Stopped
from loco_trainer import train
from loco_trainer.bases import find
from loco_trainer.data.batches import epoch_order
from loco_trainer.engines import choose
from loco_trainer.loop import checkpoints
from loco_trainer.loop import fit as fitting
from loco_trainer.loop.schedule import rate_factor


def losses(result: TrainResult) -> list[float]:
    return [step.loss for step in result.log]


@pytest.fixture(scope="module")
def kept() -> list[tuple[TrainResult, Path, Any]]:
    """Keeps the one uninterrupted run that several tests look at."""
    return []


@pytest.fixture
def run(
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path_factory: pytest.TempPathFactory,
    recorder: Any,
    kept: list[tuple[TrainResult, Path, Any]],
) -> tuple[TrainResult, Path, Any]:
    """An uninterrupted run, its folder, and its own recorder: the first test's may hear more."""
    if not kept:
        folder, own = tmp_path_factory.mktemp("whole"), type(recorder)()
        kept.append((train.run(toy_spec, inputs, folder, own), folder, own))
    return kept[0]


def test_the_run_is_what_the_spec_says(run: Any) -> None:
    result, out, _ = run
    assert result.engine == "peft"
    assert result.device == "cpu"
    assert result.examples == 24
    assert (result.cut, result.dropped) == (0, 0)
    assert result.total_steps == 18  # 24 rows / (2 * 2) * 3 epochs
    assert [s.step for s in result.log] == list(range(1, 19))
    assert result.last_loss < result.first_loss
    assert result.resumed_from_step is None
    assert result.trainable_parameters == sum(
        t.numel() for t in load_file(out / "checkpoints" / "adapter_model.safetensors").values()
    )


@pytest.mark.parametrize(("long", "warned"), [(1, False), (2, True)])
def test_rows_without_an_end_are_counted_and_warned_about_above_5_percent(
    toy_spec: TrainSpec, toy_dir: Path, tmp_path: Path, recorder: Any, long: int, warned: bool
) -> None:
    path = tmp_path / "training_data.jsonl"
    contents = ["so " * 200] * long + ["4"] * (20 - long)
    turns = [
        [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": content}]
        for content in contents
    ]
    path.write_text("".join(json.dumps({"conversations": t}) + "\n" for t in turns))
    spec = toy_spec.model_copy(update={"max_length": 100})
    data = train._read(path, train._template(toy_dir, None), spec, recorder)
    assert data.cut == long
    said = [event.message for event in recorder.of_type("log")]
    assert said[0].startswith(f"{long} rows were cut at 100 tokens")
    assert any("Warning: 10% of the rows have no end" in line for line in said) == warned


def test_the_files_are_an_adapter_and_its_tokenizer(run: Any) -> None:
    result, out, _ = run
    assert {
        "checkpoints/adapter_model.safetensors",
        "checkpoints/adapter_config.json",
        "checkpoints/tokenizer.json",
        "checkpoints/tokenizer_config.json",
        "checkpoints/chat_template.jinja",
    } == set(result.files)
    assert all((out / path).is_file() for path in result.files.values())
    config = json.loads((out / "checkpoints" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)


def test_progress_has_every_field(run: Any) -> None:
    _, _, recorder = run
    steps = [e.progress for e in recorder.of_type("progress") if e.progress.step is not None]
    assert len(steps) == 18
    for progress in steps:
        # `tried` is for the end of a training that had too little memory; no row is kept apart here
        without = {"tried", "validation_loss", "validation_epoch", "lowest_validation_loss"}
        assert progress.model_fields_set == set(Progress.model_fields) - without
    assert steps[-1].percent == 100
    assert steps[-1].eta_seconds == 0
    assert all(p.tokens_per_second > 0 for p in steps)
    assert [p.learning_rate for p in steps] == sorted(
        (p.learning_rate for p in steps), reverse=True
    )


def test_checkpoints_come_by_the_clock(
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fitting, "_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fitting, "_CHECKPOINT_COST", 0.0)
    train.run(toy_spec, inputs, tmp_path, recorder)
    said = [event.step for event in recorder.of_type("checkpoint")]
    assert said == list(range(1, 18))  # the end itself has the adapter
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-16", "checkpoint-17"]
    assert checkpoints.fault(tmp_path / "checkpoints" / "checkpoint-17") is None


def test_the_same_seed_gives_the_same_losses(
    run: Any, toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    again = train.run(toy_spec, inputs, tmp_path / "again", recorder)
    assert losses(again) == losses(run[0])
    other = train.run(toy_spec.model_copy(update={"seed": 8}), inputs, tmp_path / "other", recorder)
    assert losses(other) != losses(run[0])


def test_a_download_and_a_wait_for_the_gpu_are_no_part_of_the_start(
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = toy_spec.model_copy(update={"max_steps": 1})
    resolve, lock = find.resolve, train.gpu_lock

    def fetch(*arguments: Any) -> Path:
        time.sleep(2)  # for the config, and for the weights
        return resolve(*arguments)

    def wait(*arguments: Any) -> Any:
        time.sleep(2)
        return lock(*arguments)

    monkeypatch.setattr(find, "resolve", fetch)
    monkeypatch.setattr(train, "gpu_lock", wait)
    result = train.run(spec, inputs, tmp_path, recorder)
    age = time.time() - psutil.Process().create_time()
    assert age - result.start_seconds > 5.9  # the three times 2 s, and the rest of the run


@pytest.mark.parametrize("at_step", [4, 6])  # inside an epoch, and at its end
def test_a_stopped_run_resumes_to_the_same_end(
    at_step: int, run: Any, toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    stopping = type(recorder)(stop_at_step=at_step)
    with pytest.raises(Stopped):
        train.run(toy_spec, inputs, tmp_path / "a1", stopping)
    left = Path(stopping.of_type("checkpoint")[-1].path)
    assert checkpoints.step_of(left) == at_step

    resumed = train.run(
        toy_spec, inputs.model_copy(update={"resume": (left,)}), tmp_path / "a2", recorder
    )
    whole, out, _ = run
    assert resumed.resumed_from_step == at_step
    assert losses(resumed) == losses(whole)
    ours = load_file(tmp_path / "a2" / "checkpoints" / "adapter_model.safetensors")
    theirs = load_file(out / "checkpoints" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_checkpoint_is_passed_over(
    run: Any, toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    left = []
    for at_step in (4, 6):
        stopping = type(recorder)(stop_at_step=at_step)
        with pytest.raises(Stopped):
            train.run(toy_spec, inputs, tmp_path / f"a{at_step}", stopping)
        left.insert(0, Path(stopping.of_type("checkpoint")[-1].path))
    newest = left[0] / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])

    resumed = train.run(
        toy_spec, inputs.model_copy(update={"resume": tuple(left)}), tmp_path / "last", recorder
    )
    assert resumed.resumed_from_step == 4
    assert losses(resumed) == losses(run[0])
    said = " ".join(event.message for event in recorder.of_type("log"))
    assert "Skipped checkpoint checkpoint-6: optimizer.safetensors is damaged" in said


def test_a_checkpoint_of_another_version_is_passed_over(
    toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    stopping = type(recorder)(stop_at_step=4)
    with pytest.raises(Stopped):
        train.run(toy_spec, inputs, tmp_path / "a1", stopping)
    left = Path(stopping.of_type("checkpoint")[-1].path)
    assert checkpoints.fault(left) is None
    seal = left / "complete.json"
    known = json.loads(seal.read_text())
    seal.write_text(json.dumps({"files": known["files"]}))
    assert checkpoints.fault(left) == "it comes from another version of locollm"


def test_accumulation_is_the_same_as_a_larger_batch(
    toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    plain = toy_spec.model_copy(
        update={"lora": toy_spec.lora.model_copy(update={"dropout": 0.0}), "max_steps": 4}
    )
    large = plain.model_copy(update={"batch_size": 4, "gradient_accumulation": 1})
    a = train.run(plain, inputs, tmp_path / "a", recorder)
    b = train.run(large, inputs, tmp_path / "b", recorder)
    assert a.total_steps == b.total_steps == 4
    # padding differs, so sums are rounded differently in bfloat16
    assert losses(a) == pytest.approx(losses(b), rel=2e-2)


def test_a_loss_that_is_no_number_fails_with_the_way_out(
    toy_spec: TrainSpec, toy_dir: Path, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in toy_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(float("inf"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    base = toy_spec.base_model.model_copy(update={"merge": str(broken)})
    with pytest.raises(TrainingFailed, match="not a number at step 1") as caught:
        train.run(toy_spec.model_copy(update={"base_model": base}), inputs, tmp_path, recorder)
    assert "learning_rate" in (caught.value.hint or "")


def test_a_disk_too_small_is_found_before_loading(
    toy_spec: TrainSpec, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    lora = toy_spec.lora.model_copy(update={"r": 10**12})
    with pytest.raises(DiskFull, match=r"Training's checkpoints needs \d{15,} bytes"):
        train.run(toy_spec.model_copy(update={"lora": lora}), inputs, tmp_path, recorder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_unsloth_without_a_gpu_is_refused_and_auto_takes_peft(toy_spec: TrainSpec) -> None:
    assert choose.engine_for(toy_spec.model_copy(update={"engine": "auto"})) == "peft"
    with pytest.raises(TrainingFailed, match="needs an NVIDIA GPU") as caught:
        choose.engine_for(toy_spec.model_copy(update={"engine": "unsloth"}))
    assert caught.value.param == "train.engine"


@pytest.mark.parametrize(
    ("changed", "rows", "steps"),
    [
        ({"batch_size": 2, "gradient_accumulation": 4, "epochs": 3}, 200, 75),
        ({"batch_size": 8, "gradient_accumulation": 1, "epochs": 1}, 160, 20),
        ({"batch_size": 8, "gradient_accumulation": 1, "epochs": 1}, 161, 21),
        ({"batch_size": 8, "gradient_accumulation": 1, "epochs": 0.5}, 160, 10),
        ({"batch_size": 8, "gradient_accumulation": 2, "epochs": 0.01}, 160, 1),
        ({"epochs": 3, "max_steps": 5}, 160, 5),
    ],
)
def test_steps(toy_spec: TrainSpec, changed: dict[str, Any], rows: int, steps: int) -> None:
    assert total_steps(toy_spec.model_copy(update=changed), rows) == steps


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_no_step_is_wasted_on_a_rate_of_zero(toy_spec: TrainSpec, scheduler: str) -> None:
    spec = toy_spec.model_copy(update={"scheduler": scheduler, "warmup_ratio": 0.1})
    rates = [rate_factor(spec, 20, step) for step in range(20)]
    assert all(rate > 0 for rate in rates)
    assert rates[0] == pytest.approx(1 / 3)  # two warm-up steps
    assert max(rates) == rates[2] == 1
    falling = rates[2:]
    assert falling == sorted(falling, reverse=True)
    assert math.isclose(falling[-1], 1.0) == (scheduler == "constant")


def test_the_order_keeps_a_steps_rows_and_sorts_them_by_length() -> None:
    lengths = [50, 10, 40, 20, 30, 60, 70, 15, 25, 35]
    epochs = []
    for epoch in range(2):
        epochs.append(epoch_order(lengths, step_rows=4, seed=3, epoch=epoch))
        assert epoch_order(lengths, step_rows=4, seed=3, epoch=epoch) == epochs[-1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    for start in range(0, 10, 4):
        step = epochs[0][start : start + 4]
        assert [lengths[i] for i in step] == sorted(lengths[i] for i in step)


def test_rows_an_answer_and_lost_answers_are_said(
    toy_spec: TrainSpec, toy_dir: Path, tmp_path: Path, recorder: Any
) -> None:
    from chat_families import template_text

    template = train._template(toy_dir, None)
    template.tokenizer.chat_template = template_text("qwen3")
    path = tmp_path / "training_data.jsonl"
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "why " * 200},
        {"role": "assistant", "content": "So."},
    ]
    path.write_text(json.dumps({"conversations": turns}) + "\n")
    spec = toy_spec.model_copy(update={"max_length": 100})
    train._read(path, template, spec, recorder)
    said = [event.message for event in recorder.of_type("log")]
    assert said[0].startswith("1 conversations became 2 rows")
    assert said[1].startswith("0 rows were cut at 100 tokens inside an answer. 1 answers")
