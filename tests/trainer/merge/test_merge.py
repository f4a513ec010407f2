"""The merge of one tensor at a time gives what PEFT's own merge computes, tensor by tensor."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loco.contracts.errors import ExportFailed
from loco_trainer.merge.lora import Adapter
from loco_trainer.merge.stored import index


@pytest.fixture
def adapter(toy_dir: Path, tmp_path: Path, make_adapter: Callable[..., Path]) -> Path:
    """An adapter on every linear layer whose B is not zero."""
    return make_adapter(toy_dir, tmp_path / "adapter", std=0.2)


def merged(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the base, merged as the export asks for it."""
    stored, lora = index(base), Adapter(adapter)
    lora.check(stored, base)
    return {name: lora.merged(name, tensor.read()) for name, tensor in stored.items()}


def check(base: Path, adapter: Path) -> None:
    Adapter(adapter).check(index(base), base)


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_it_is_pefts_merge(
    model: str,
    toy_dir: Path,
    small_qwen_dir: Path,
    tmp_path: Path,
    make_adapter: Callable[..., Path],
) -> None:
    folder, dtype = {
        "llama": (toy_dir, torch.float16),
        "qwen3": (small_qwen_dir, torch.bfloat16),
    }[model]
    adapter = make_adapter(folder, tmp_path / "lora", std=0.2)
    ours = merged(folder, adapter)

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    theirs = {k: v for k, v in whole.state_dict().items() if k in ours}
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, theirs[name].to(dtype)), name

    before = load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], ours[name])}
    lora = Adapter(adapter)
    assert changed == {name for name in before if name in lora}
    assert len(changed) == len(lora) == base.config.num_hidden_layers * 7  # all their linears


def test_shards_are_one_base(toy_dir: Path, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(toy_dir).save_pretrained(base, max_shard_size="1MB")
    assert len(list(base.glob("*.safetensors"))) > 1
    parts, whole = merged(base, adapter), merged(toy_dir, adapter)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_base_cut_short_is_refused(toy_dir: Path, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "short"
    shutil.copytree(toy_dir, base)
    file = base / "model.safetensors"
    os.truncate(file, file.stat().st_size - 10)
    with pytest.raises(ExportFailed, match=r"model.safetensors ends before the data of"):
        merged(base, adapter)


#: Largest difference of a logit seen on these models, doubled. The merged float16 model rounds each
#: weight to 11 bits (bfloat16: 8); base + LoRA in float32 doesn't.
@pytest.mark.parametrize(
    ("model", "bound"), [("smollm2", 0.04), ("qwen3", 0.016)], ids=["llama", "qwen3"]
)
def test_logits_of_the_merged_model_are_those_of_base_and_adapter(
    model: str,
    bound: float,
    smollm2_dir: Path,
    small_qwen_dir: Path,
    tmp_path: Path,
    make_adapter: Callable[..., Path],
) -> None:
    folder = {"smollm2": smollm2_dir, "qwen3": small_qwen_dir}[model]
    adapter = make_adapter(folder, tmp_path / "lora")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {name: tensor.float() for name, tensor in merged(folder, adapter).items()}
    ids = torch.arange(100, 1300, 25).view(2, -1)
    with torch.no_grad():
        before = plain(ids).logits
        expected = PeftModel.from_pretrained(plain, adapter)(ids).logits
        model_16 = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        missing, unexpected = model_16.load_state_dict(weights, strict=False)
        assert set(missing) <= {"lm_head.weight"}
        assert not unexpected
        found = model_16(ids).logits
    difference = (found - expected).abs().max().item()
    assert (expected - before).abs().max() > 10 * difference  # the adapter does something
    print(f"largest difference of a logit: {difference:.5f} of {expected.abs().max():.1f}")
    assert difference < bound


def test_an_adapter_of_another_model_is_refused(toy_dir: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.7"): t for name, t in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportFailed, match="7 adapted layers are not in the base"):
        check(toy_dir, adapter)


def test_an_adapter_of_another_shape_is_refused(toy_dir: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights = {n: t[:-1] if n.endswith("lora_B.weight") else t for n, t in weights.items()}
    save_file(
        {n: t.contiguous() for n, t in weights.items()}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(ExportFailed, match=r"has shape \[63, 128\], the base's \[64, 128\]"):
        check(toy_dir, adapter)


def test_an_adapter_without_numbers_is_refused(toy_dir: Path, adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(ExportFailed, match="not numbers"):
        merged(toy_dir, adapter)


def test_a_quantized_base_is_refused(toy_dir: Path, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "4bit"
    shutil.copytree(toy_dir, base)
    weights = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].to(torch.uint8)
    save_file(weights, base / "model.safetensors")
    with pytest.raises(ExportFailed, match="Merging into quantized"):
        check(base, adapter)


def test_other_kinds_of_adapter_are_refused(toy_dir: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    with pytest.raises(ExportFailed, match="use_dora"):
        check(toy_dir, adapter)


def test_an_adapter_on_an_embedding_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    more = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 8)}
    save_file(load_file(file) | more, file)
    with pytest.raises(ExportFailed, match="lora_embedding_A, which is not part of a linear layer"):
        Adapter(adapter)


def test_a_base_that_lacks_a_file_is_refused_by_its_name(toy_dir: Path, tmp_path: Path) -> None:
    base = shutil.copytree(toy_dir, tmp_path / "base")
    names = {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}
    listed = base / "model.safetensors.index.json"
    listed.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ExportFailed, match=r"has no model-00002-of-00002\.safetensors") as caught:
        index(base)
    assert "download it again" in (caught.value.hint or "")


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_a_base_with_a_damaged_head_is_refused(toy_dir: Path, tmp_path: Path, kept: int) -> None:
    base = shutil.copytree(toy_dir, tmp_path / "base")
    with (base / "model.safetensors").open("r+b") as file:
        file.truncate(kept)
    with pytest.raises(ExportFailed, match=r"model\.safetensors of the base is damaged"):
        index(base)
