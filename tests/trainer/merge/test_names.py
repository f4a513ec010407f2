"""Layers that are called otherwise on disk than in memory are merged where they belong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import small_models
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loco.contracts.errors import TrainingFailed
from loco_trainer.merge import names
from loco_trainer.merge.lora import Adapter
from loco_trainer.merge.stored import index


@pytest.mark.parametrize(
    ("architecture", "on_disk"),
    [
        ("gemma3", "language_model.model.layers.1.self_attn.q_proj.weight"),
        ("qwen3_5", "model.language_model.layers.3.self_attn.q_proj.weight"),
    ],
)
def test_a_merge_under_other_names_is_base_and_adapter(
    architecture: str, on_disk: str, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    base = tmp_path / "base"
    getattr(small_models, architecture)(320).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", std=0.2)
    stored, lora = index(base), Adapter(adapter)
    assert on_disk in stored
    assert on_disk not in lora
    lora.check(stored, base)
    assert on_disk in lora
    assert len(lora) > 12

    result = tmp_path / "merged"
    AutoConfig.from_pretrained(base).save_pretrained(result)
    save_file(
        {name: lora.merged(name, tensor.read()) for name, tensor in stored.items()},
        result / "model.safetensors",
        metadata={"format": "pt"},
    )
    ids = torch.arange(2, 42).view(2, -1)
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base)
        before = plain(ids).logits
        expected = PeftModel.from_pretrained(plain, adapter).eval()(ids).logits
        found = AutoModelForCausalLM.from_pretrained(result)(ids).logits
    assert (expected - before).abs().max() > 0.01
    # merged or beside, float32 sums come in another order: seen up to 3e-5 (Qwen3.5's linear attention)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


def test_what_is_stored_in_one_piece_has_no_name_for_its_parts(tmp_path: Path) -> None:
    small_models.hrm(320).save_pretrained(tmp_path)
    known = names.on_disk(names.hollow(tmp_path), names.stored_names(tmp_path) or ())
    assert any(name.endswith("o_proj.weight") for name in known)
    assert not any(name.endswith("q_proj.weight") for name in known)


def test_an_architecture_unknown_to_transformers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_17"}')
    with pytest.raises(TrainingFailed, match="gpt_17") as caught:
        names.hollow(tmp_path)
    assert caught.value.param == "base_model"
