"""The facts a plan follows from, collected where training runs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.errors import InvalidRequest
from loco.contracts.plans import Device, Lengths, Shape
from loco.contracts.specs import Inputs, TrainSpec
from loco.planning.lessons import Lessons
from loco_trainer import train
from loco_trainer.bases.find import read_config
from loco_trainer.data.rows import IGNORED, Row, Rows
from loco_trainer.loop import facts


def rows(*sizes: int) -> Rows:
    """Rows of so many tokens, of which the last three are the answer."""
    made = [Row(list(range(n)), [IGNORED] * (n - 3) + list(range(n - 3, n))) for n in sizes]
    return Rows(made, cut=0, dropped=0)


def shape(folder: Path) -> Shape:
    return Shape.of(read_config(folder))


def test_lengths_are_those_of_the_tokenized_rows() -> None:
    assert facts.lengths_of(rows(*range(4, 104))) == Lengths(
        rows=100, tokens=sum(range(4, 104)), answer_tokens=300, p50=54, p95=98, longest=103
    )
    one = facts.lengths_of(rows(7))
    assert (one.p50, one.p95, one.longest) == (7, 7, 7)


def test_the_device_is_this_machine() -> None:
    import torch

    found = facts.device()
    assert found.is_gpu == torch.cuda.is_available()
    assert 0 < found.free_gb <= found.memory_gb * 1.01
    if not found.is_gpu:
        assert found.cores == len(os.sched_getaffinity(0))


def test_the_catalog_describes_the_model_as_its_own_config_does(smollm2, smollm2_dir) -> None:
    assert Shape.of(smollm2.config) == Shape.of(read_config(smollm2_dir))


def test_a_plan_follows_from_folder_rows_and_machine(toy_spec: TrainSpec, toy_dir: Path) -> None:
    pinned = toy_spec.model_copy(update={"micro_batch": 1})
    found = facts.plan_for(pinned, shape(toy_dir), rows(10, 20, 30), "peft")
    assert (found.micro_batch, found.accumulation) == (1, toy_spec.step_rows)
    assert found.max_length == 30
    assert found.memory_gb > 0
    assert json.loads(found.model_dump_json())["why"]


def test_a_pin_that_does_not_divide_is_refused_before_anything_is_loaded(
    toy_spec: TrainSpec, toy_dir: Path
) -> None:
    wrong = toy_spec.model_copy(update={"micro_batch": toy_spec.step_rows + 1})
    with pytest.raises(InvalidRequest, match="does not divide"):
        facts.plan_for(wrong, shape(toy_dir), rows(10, 20), "peft")


def test_the_ladder_of_a_run_ends(toy_spec: TrainSpec, toy_dir: Path) -> None:
    found = facts.plan_for(toy_spec, shape(toy_dir), rows(10, 20, 30), "peft")
    smaller = facts.ladder(toy_spec, shape(toy_dir), rows(10, 20, 30))
    seen = [found]
    while below := smaller(seen[-1], False):
        seen.append(below)
    assert seen[-1].micro_batch == 1
    assert seen[-1].gradient_checkpointing
    assert all(p.micro_batch * p.accumulation == toy_spec.step_rows for p in seen)


@pytest.mark.parametrize(
    "name", ["Qwen3Moe", "Mixtral", "DeepseekV3", "GptOss", "Olmoe", "Ernie4_5_Moe", "Llama4"]
)
def test_a_mixture_of_experts_is_refused_before_a_weight_is_loaded(
    name: str, toy_spec: TrainSpec, toy_dir: Path, inputs: Inputs, tmp_path: Path, recorder: Any
) -> None:
    import transformers

    moe = tmp_path / "moe"
    moe.mkdir()
    for file in toy_dir.iterdir():
        shutil.copyfile(file, moe / file.name)
    (moe / "config.json").unlink()
    config = getattr(transformers, f"{name}Config")().to_dict()
    (moe / "config.json").write_text(json.dumps(config, default=str))
    base = toy_spec.base_model.model_copy(update={"merge": str(moe)})
    spec = toy_spec.model_copy(update={"base_model": base})
    with pytest.raises(InvalidRequest, match="mixture of experts"):
        train.run(spec, inputs, tmp_path / "out", recorder)


def test_a_base_that_is_fetched_for_4_bits_is_planned_with_the_size_of_its_files(
    toy_spec: TrainSpec, toy_dir: Path, inputs: Inputs, recorder: Any, monkeypatch: Any
) -> None:
    small = Device(name="RTX 3070", memory_gb=8.0, free_gb=8.0, compute_capability=8.6)
    monkeypatch.setattr(facts, "device", lambda: small)
    monkeypatch.setattr(train, "with_stored_size", lambda shape, base, models: stored(shape))
    spec = toy_spec.model_copy(update={"load_in_4bit": True})
    data = rows(10, 20, 30)
    given = train._Given(spec, inputs, inputs.adapter_dir, recorder, train._Waits())
    lengths = facts.lengths_of(data)
    known = train._Facts("peft", shape(toy_dir), None, data, [], lengths, None, Lessons())
    assert train._plan(given, known).memory_gb > 5


def stored(shape: Shape) -> Shape:
    return shape.model_copy(update={"quantized_bytes": 5 * 10**9})
