"""Merges a LoRA adapter into its 16-bit base: W + (alpha / r) * B @ A, one tensor at a time.

The output files are copies of the base's safetensors files in which adapted tensors differ. No
model object is built and one tensor is in memory at a time, so any base merges in little RAM.
Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from loco.errors import ExportFailed

_PREFIX = "base_model.model."
_SIXTEEN_BITS = {"F16", "BF16", "F32"}

#: Called with the bytes merged so far and in all.
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class _Pair:
    """The two matrices PEFT keeps for one linear layer."""

    a: torch.Tensor  # [r, inputs]
    b: torch.Tensor  # [outputs, r]


def merge(base: Path, adapter: Path, folder: Path, report: Report) -> list[str]:
    """Writes config and merged weights into `folder`; returns the names of the merged tensors.

    Args:
        base: Hugging Face folder of the 16-bit base.
        adapter: folder with adapter_config.json and adapter_model.safetensors.
        folder: an existing folder.
        report: hears how far it is.

    Raises:
        ExportFailed: the adapter is no plain LoRA, does not fit the base, or has no numbers.
    """
    scale, pairs = _read_adapter(adapter)
    shards = sorted(base.glob("*.safetensors"))
    total = sum(shard.stat().st_size for shard in shards)
    waiting = dict(pairs)
    done = 0
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors, (folder / shard.name).open("wb") as out:
            for name, entry in _copy_header(shard, out):
                tensor = tensors.get_tensor(name)
                if pair := waiting.pop(name, None):
                    tensor = _merged(name, tensor, entry["dtype"], pair, scale)
                out.write(tensor.contiguous().view(torch.uint8).numpy().data)
                done += tensor.nbytes
                report(done, total)
    if waiting:
        raise ExportFailed(
            f"{len(waiting)} adapted layers are not in the base {base.name}, e.g. "
            f"{next(iter(waiting))}.",
            hint="`merge` in adapters/base_models.yaml must name the 16-bit form of the model "
            "named by `train`.",
        )
    for file in base.glob("*.json"):
        if "tokenizer" not in file.name:
            shutil.copyfile(file, folder / file.name)
    return list(pairs)


def _read_adapter(adapter: Path) -> tuple[float, dict[str, _Pair]]:
    config = json.loads((adapter / "adapter_config.json").read_text())
    unusual = [
        option
        for option in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
        if config.get(option)
    ]
    if config.get("peft_type") != "LORA" or unusual:
        raise ExportFailed(
            f"The adapter is not a plain LoRA ({', '.join(unusual) or config.get('peft_type')}).",
            hint="Train it with stage train, which makes plain LoRA adapters.",
        )
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    pairs = {}
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a dict)
            if key.endswith(".lora_A.weight"):
                layer = key.removesuffix(".lora_A.weight")
                pairs[layer.removeprefix(_PREFIX) + ".weight"] = _Pair(
                    tensors.get_tensor(key).float(),
                    tensors.get_tensor(f"{layer}.lora_B.weight").float(),
                )
    return scale, pairs


def _copy_header(shard: Path, out: BinaryIO) -> list[tuple[str, dict[str, Any]]]:
    """Copies a safetensors header; returns its tensors in the order of their data.

    The format: 8 bytes little-endian length, a JSON header of that length, the data.
    https://github.com/huggingface/safetensors#format
    """
    with shard.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    out.write(length + header)
    entries: dict[str, dict[str, Any]] = json.loads(header)
    entries.pop("__metadata__", None)
    return sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0])


def _merged(name: str, weight: torch.Tensor, dtype: str, pair: _Pair, scale: float) -> torch.Tensor:
    if dtype not in _SIXTEEN_BITS:
        raise ExportFailed(
            f"The base holds {name} as {dtype}: merging into quantized weights loses precision.",
            hint="`merge` in adapters/base_models.yaml must name 16-bit weights.",
        )
    delta = pair.b @ pair.a * scale
    if delta.shape != weight.shape:
        raise ExportFailed(
            f"The adapter's {name} is {list(delta.shape)}, the base's {list(weight.shape)}.",
            hint="The adapter was trained on another base model.",
        )
    merged = (weight.float() + delta).to(weight.dtype)
    if not bool(torch.isfinite(merged).all()):
        raise ExportFailed(
            f"Merged {name} has values that are no numbers, or too large for {dtype}.",
            hint="Train again with a lower learning rate.",
        )
    return merged
