"""Which layers get an adapter, and which recipes are refused before a weight is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from transformers import AutoTokenizer

from loco.contracts.errors import TrainingFailed
from loco.contracts.specs import BaseModelSpec, Inputs, TrainSpec
from loco_trainer import train
from loco_trainer.engines import targets
from loco_trainer.merge import names
from loco_trainer.merge.lora import Adapter
from loco_trainer.merge.stored import index


def asking(spec: TrainSpec, *layers: str) -> TrainSpec:
    lora = {"target_modules": layers, "dropout": 0.0} if layers else {"dropout": 0.0}
    return spec.model_copy(update={"lora": spec.lora.model_copy(update=lora)})


@pytest.fixture
def a_base(tmp_path: Path, smollm2_dir: Path, toy: BaseModelSpec) -> Callable[[Any], BaseModelSpec]:
    """Saves a model with SmolLM2's tokenizer and gives its catalog entry."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)

    def save(model: Callable[[int], Any]) -> BaseModelSpec:
        folder = tmp_path / "base"
        model(len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return toy.model_copy(update={"train": str(folder), "merge": str(folder)})

    return save


@pytest.mark.parametrize("asked", [(), ("q_proj", "o_proj")], ids=["all-linear", "q and o"])
@pytest.mark.parametrize("model", [small_models.gemma3, small_models.qwen3_5])
def test_what_is_trained_can_be_merged(
    model: Callable[[int], Any],
    asked: tuple[str, ...],
    a_base: Callable[[Any], BaseModelSpec],
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
) -> None:
    base = a_base(model)
    spec = asking(toy_spec, *asked).model_copy(update={"base_model": base, "max_steps": 2})
    result = train.run(spec, inputs, tmp_path / "out", recorder)
    assert len(result.log) == 2
    adapter = Adapter(tmp_path / "out" / "checkpoints")
    expected = targets.adapted_layers(names.hollow(Path(base.merge)), spec)
    assert len(adapter) == len(expected)
    assert not any("vision" in layer for layer in expected)
    adapter.check(index(Path(base.merge)), Path(base.merge))


@pytest.mark.parametrize("known_by", ["its index", "its files"])
def test_layers_that_export_cannot_name_are_refused_before_training(
    known_by: str,
    a_base: Callable[[Any], BaseModelSpec],
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
) -> None:
    base = a_base(small_models.hrm)
    folder = Path(base.merge)
    if known_by == "its index":
        listed = {"weight_map": dict.fromkeys(index(folder), "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    spec = asking(toy_spec, "q_proj", "o_proj").model_copy(update={"base_model": base})
    with pytest.raises(TrainingFailed, match="export could not merge them") as caught:
        train.run(spec, inputs, tmp_path / "out", recorder)
    assert "q_proj" in caught.value.message
    assert caught.value.param == "train.lora.target_modules"
    assert "Leave them out" in (caught.value.hint or "")
    assert not any("loading" in event.model_dump_json() for event in recorder.events)


def test_a_base_that_the_converter_does_not_know_is_refused_before_training(
    a_base: Callable[[Any], BaseModelSpec],
    toy_spec: TrainSpec,
    inputs: Inputs,
    tmp_path: Path,
    recorder: Any,
) -> None:
    base = a_base(small_models.hrm)
    spec = asking(toy_spec, "o_proj").model_copy(update={"base_model": base})
    with pytest.raises(TrainingFailed, match="does not know the architecture HrmText") as caught:
        train.run(spec, inputs, tmp_path / "out", recorder)
    assert caught.value.param == "base_model"
    assert not any("loading" in event.model_dump_json() for event in recorder.events)


def test_a_base_of_which_only_the_config_is_here_is_checked_by_its_own_names(
    a_base: Callable[[Any], BaseModelSpec], toy_spec: TrainSpec
) -> None:
    folder = Path(a_base(small_models.gemma3).merge)
    (folder / "model.safetensors").unlink()
    targets.check(asking(toy_spec, "q_proj"), folder)
    with pytest.raises(TrainingFailed, match="has no layer fc1"):
        targets.check(asking(toy_spec, "fc1"), folder)  # of the vision tower


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        (["v_proj", "q_porj"], "has no layer q_porj"),
        (["q_proj", "embed_tokens"], "embed_tokens is not a linear layer"),
        (["lm_head"], "lm_head shares its weights with the embedding"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused_by_name(
    asked: list[str], fault: str, toy_dir: Path, toy_spec: TrainSpec
) -> None:
    with pytest.raises(TrainingFailed, match=fault) as caught:
        targets.check(asking(toy_spec, *asked), toy_dir)
    assert caught.value.param == "train.lora.target_modules"
    assert "q_proj" in (caught.value.hint or "")
    assert "lm_head" not in (caught.value.hint or "")


def test_the_check_reads_no_weights(toy_dir: Path) -> None:
    model = names.hollow(toy_dir)
    assert {p.device for p in model.parameters()} == {torch.device("meta")}
