"""How much of an adapter's update is left in a merged, quantized file: a table of docs/learning.md.

    python tests/benchmarks/learning/update_left.py --merged FILE --base FILE --adapter FOLDER

Reads a few layers of a GGUF whose base came as a GGUF, too. For each adapted tensor: the update's size
beside the weights', the part of it that is left (its projection; 1: all, 0: nothing), and what else
changed, in sizes of the update.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from gguf_to_hf import MODULES
from safetensors.torch import load_file


def left(update: Any, change: Any) -> tuple[float, float]:
    """The part of an update that a change has, and the size of the rest in sizes of the update.

    Args:
        update: what the adapter adds to a weight [out, in].
        change: what the merged file has more than the base's [out, in].
    """
    part = float((change * update).sum() / (update * update).sum())
    return part, float(np.linalg.norm(change - update) / np.linalg.norm(update))


def main() -> None:
    """Prints a line a tensor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("merged", "base", "adapter"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 9, 20])
    options = parser.parse_args()
    merged, base = (
        {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}
        for path in (options.merged, options.base)
    )
    config = json.loads((options.adapter / "adapter_config.json").read_text())
    weights = load_file(options.adapter / "adapter_model.safetensors")
    print("tensor, base's type, merged type, update / weights, left, rest / update")
    for layer in options.layers:
        for name, module in MODULES.items():
            place = f"base_model.model.model.layers.{layer}.{module}"
            if f"{place}.lora_A.weight" not in weights:
                continue
            a, b = (weights[f"{place}.lora_{x}.weight"].to(torch.float32).numpy() for x in "AB")
            update = config["lora_alpha"] / config["r"] * (b @ a)
            before, after = base[f"blk.{layer}.{name}.weight"], merged[f"blk.{layer}.{name}.weight"]
            old = dequantize(before.data, before.tensor_type)
            part, rest = left(update, dequantize(after.data, after.tensor_type) - old)
            size = float(np.linalg.norm(update) / np.linalg.norm(old))
            types = f"{before.tensor_type.name} {after.tensor_type.name}"
            print(f"{after.name} {types} {size:.4f} {part:.3f} {rest:.2f}")


if __name__ == "__main__":
    main()
