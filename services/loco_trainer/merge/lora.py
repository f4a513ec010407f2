"""Merges a LoRA adapter into its 16-bit base: W + (alpha / r) * B @ A, one tensor at a time.

No model object is built and nothing is written: whoever asks gets one merged tensor, rounded to the
base's own type as PEFT's `merge_and_unload` rounds it.
Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from loco.contracts.errors import ExportFailed
from loco_trainer.merge import names
from loco_trainer.merge.stored import TYPES, Stored

_PREFIX = "base_model.model."
#: Ends of an adapter's keys; the last is a base layer that PEFT saves along, as it was.
_KEYS = (".lora_A.weight", ".lora_B.weight", ".base_layer.weight")


@dataclass(frozen=True)
class _Pair:
    """The two matrices PEFT keeps for one linear layer."""

    a: torch.Tensor  # [r, inputs]
    b: torch.Tensor  # [outputs, r]


class Adapter:
    """A LoRA adapter in memory, as PEFT saved it."""

    def __init__(self, folder: Path | None) -> None:
        """Reads adapter_config.json and adapter_model.safetensors.

        Args:
            folder: where they are; None: an adapter of no layer, which leaves the base as it is.

        Raises:
            ExportFailed: the adapter is no plain LoRA.
        """
        self._pairs: dict[str, _Pair] = {}
        #: B @ A is multiplied by this.
        self.scale = 1.0
        self.rank = 1
        if folder is None:
            return
        config = json.loads((folder / "adapter_config.json").read_text())
        unusual = [
            option
            for option in (
                "use_dora",
                "modules_to_save",
                "rank_pattern",
                "alpha_pattern",
                "lora_bias",
            )
            if config.get(option)
        ]
        if config.get("peft_type") != "LORA" or unusual:
            raise ExportFailed(
                f"The adapter is not a plain LoRA ({', '.join(unusual) or config.get('peft_type')}).",
                hint="Train it with stage train, which makes plain LoRA adapters.",
            )
        self.rank = rank = int(config["r"])
        self.scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
            keys = list(tensors.keys())
            if strange := [key for key in keys if not key.endswith(_KEYS)]:
                raise ExportFailed(
                    f"The adapter has {strange[0]}, which is not part of a linear layer.",
                    hint="Train it with stage train, on linear layers only.",
                )
            for key in keys:
                if key.endswith(".lora_A.weight"):
                    layer = key.removesuffix(".lora_A.weight")
                    self._pairs[layer.removeprefix(_PREFIX) + ".weight"] = _Pair(
                        tensors.get_tensor(key).float(),
                        tensors.get_tensor(f"{layer}.lora_B.weight").float(),
                    )

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, name: str) -> bool:
        return name in self._pairs

    def layers(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Name of each weight, A [r, inputs] and B [outputs, r], float32; on disk once `check` has run."""
        for name, pair in self._pairs.items():
            yield name, pair.a, pair.b

    def check(self, base: dict[str, Stored], folder: Path) -> None:
        """Compares names, types and shapes with the base's, before anything is computed.

        Layers that are called otherwise on disk than they were in memory go by their name on disk.

        Args:
            base: the base's tensors.
            folder: where its config is.

        Raises:
            ExportFailed: the adapter does not fit the base, or the base is quantized.
        """
        if any(name not in base for name in self._pairs):
            on_disk = names.on_disk(names.hollow(folder), base)
            self._pairs = {on_disk.get(name, name): pair for name, pair in self._pairs.items()}
        missing = [name for name in self._pairs if name not in base]
        if missing:
            raise ExportFailed(
                f"{len(missing)} adapted layers are not in the base, e.g. {missing[0]}.",
                hint="`merge` in adapters/base_models.yaml must name the 16-bit form of the model "
                "named by `train`.",
            )
        for name, stored in base.items():
            if stored.dtype not in TYPES:
                raise ExportFailed(
                    f"The base stores {name} as {stored.dtype}. Merging into quantized weights "
                    "loses precision.",
                    hint="`merge` in adapters/base_models.yaml must name 16-bit weights.",
                )
        for name, pair in self._pairs.items():
            shape = (len(pair.b), pair.a.shape[1])
            if shape != base[name].shape:
                raise ExportFailed(
                    f"The adapter's {name} has shape {list(shape)}, the base's "
                    f"{list(base[name].shape)}.",
                    hint="The adapter was trained on another base model.",
                )

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The base's tensor with the adapter in it, on the same device and of the same type.

        Raises:
            ExportFailed: a value is no number.
        """
        pair = self._pairs.get(name)
        if pair is None:
            return weight
        # in place where PEFT's own two lines allow it: the same roundings, half the memory
        delta = (pair.b.to(weight.device) @ pair.a.to(weight.device)).mul_(self.scale)
        result = delta.add_(weight.float()).to(weight.dtype)
        if not bool(torch.isfinite(result).all()):
            raise ExportFailed(
                f"Merged {name} has values that are not numbers, or too large for {weight.dtype}.",
                hint="Train again with a lower learning rate.",
            )
        return result
