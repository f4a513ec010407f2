"""The streaming merge writes what PEFT's own merge computes, tensor by tensor."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loco.errors import ExportFailed
from loco_trainer.merge import merge


def silent(_done: int, _total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def adapter(toy_dir: Path, tmp_path: Path) -> Path:
    """An adapter on every linear layer whose B is not zero."""
    model = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    wrapped = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")
    )
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "merged").mkdir()
    return tmp_path / "merged"


def test_it_is_pefts_merge(toy_dir: Path, adapter: Path, target: Path) -> None:
    heard: list[tuple[int, int]] = []
    names = merge(toy_dir, adapter, target, lambda done, total: heard.append((done, total)))
    ours = load_file(target / "model.safetensors")

    base = AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    theirs = {k: v for k, v in model.state_dict().items() if k in ours}
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, theirs[name].to(torch.float16)), name

    before = load_file(toy_dir / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], ours[name])}
    assert changed == set(names)
    assert len(changed) == 2 * 7  # two layers, all their linears
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_shards_stay_shards(toy_dir: Path, adapter: Path, target: Path, tmp_path: Path) -> None:
    base = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(toy_dir).save_pretrained(base, max_shard_size="1MB")
    assert len(list(base.glob("*.safetensors"))) > 1
    merge(base, adapter, target, silent)
    assert {f.name for f in target.iterdir()} >= {f.name for f in base.glob("*.safetensors*")}
    whole = tmp_path / "whole"
    whole.mkdir()
    merge(toy_dir, adapter, whole, silent)
    expected = load_file(whole / "model.safetensors")
    for shard in target.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            assert torch.equal(tensor, expected.pop(name))
    assert not expected


def test_a_bfloat16_base_stays_bfloat16(
    toy_dir: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(toy_dir, dtype=torch.bfloat16).save_pretrained(base)
    merge(base, adapter, target, silent)
    assert {t.dtype for t in load_file(target / "model.safetensors").values()} == {torch.bfloat16}


def test_an_adapter_of_another_model_is_refused(toy_dir: Path, adapter: Path, target: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.7"): t for name, t in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportFailed, match="7 adapted layers are not in the base"):
        merge(toy_dir, adapter, target, silent)


def test_an_adapter_of_another_shape_is_refused(toy_dir: Path, adapter: Path, target: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights = {n: t[:-1] if n.endswith("lora_B.weight") else t for n, t in weights.items()}
    save_file(
        {n: t.contiguous() for n, t in weights.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(ExportFailed, match=r"is \[63, 128\], the base's \[64, 128\]"):
        merge(toy_dir, adapter, target, silent)


def test_an_adapter_without_numbers_is_refused(toy_dir: Path, adapter: Path, target: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportFailed, match="no numbers"):
        merge(toy_dir, adapter, target, silent)


def test_a_quantized_base_is_refused(
    toy_dir: Path, adapter: Path, target: Path, tmp_path: Path
) -> None:
    base = tmp_path / "4bit"
    shutil.copytree(toy_dir, base)
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].to(torch.uint8)
    save_file(weights, base / "model.safetensors")
    with pytest.raises(ExportFailed, match="as U8: merging into quantized"):
        merge(base, adapter, target, silent)


def test_other_kinds_of_adapter_are_refused(toy_dir: Path, adapter: Path, target: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(ExportFailed, match="use_dora"):
        merge(toy_dir, adapter, target, silent)
