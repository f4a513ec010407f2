"""Writes a LoRA adapter as a GGUF of its own, for a server that puts it on a base.

llama.cpp's converter says what a layer is called and how its rows are rearranged (a base of Llama's
shape has its query and key rows in another order than transformers): it is handed B [outputs, r] in
place of the weight, and A [r, inputs] stays as it is. That this is right is computed, for each kind of
layer: the converter's weight of B @ A has to be the converted B @ A.
Runs with the converter's folder first on the path, in `loco_trainer.gguf.child`.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from loco_trainer.merge.lora import Adapter

_NUMBER = re.compile(r"\.\d+\.")
_LARGEST_F16 = float(np.finfo(np.float16).max)


class NotCarried(Exception):
    """A GGUF LoRA cannot say what the adapter does; the message says why."""


def write(model: Any, adapter: Adapter, target: Path, *, name: str) -> float:
    """Writes the adapter for the base that a converter's model was made of.

    Args:
        model: the converter's model of the base.
        adapter: checked against that base.
        target: the file.
        name: `general.name`.

    Returns:
        Seconds it took.

    Raises:
        NotCarried: the GGUF of the base holds an adapted layer in another form.
    """
    started = time.monotonic()
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    checked: set[str] = set()
    for layer, a, b in adapter.layers():
        kind = _NUMBER.sub(".#.", layer)
        weight, rows = _converted(model, layer, b)
        if kind not in checked:
            _require_same(_converted(model, layer, b @ a), (weight, rows @ a), layer)
            checked.add(kind)
        tensors[f"{weight}.lora_a"] = a.numpy()
        tensors[f"{weight}.lora_b"] = rows.contiguous().numpy()
    largest = max(float(np.abs(tensor).max()) for tensor in tensors.values())
    half = largest < _LARGEST_F16
    writer = gguf.GGUFWriter(target, arch=model.gguf_writer.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    # what a server multiplies with is this divided by the rank, of rsLoRA too
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.scale * adapter.rank)
    kind = gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor, values in sorted(tensors.items()):
        writer.add_tensor(tensor, values.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return round(time.monotonic() - started, 3)


def _converted(model: Any, layer: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name in the GGUF and rearranged value of one layer's weight, or of what stands for it."""
    kept = type(model).filter_tensors((layer, _nothing))
    if kept is None:
        raise NotCarried(f"{layer} is not in the GGUF of the base")
    number = next((int(part) for part in layer.split(".") if part.isdecimal()), None)
    try:
        found = list(model.modify_tensors(value, kept[0], number))
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        # whatever the converter of an architecture makes of a layer alone; RuntimeError: also not implemented
        raise NotCarried(f"{layer} has no place in the GGUF of the base: {error!r}") from error
    if len(found) != 1:
        raise NotCarried(f"{layer} is {len(found)} tensors in the GGUF of the base")
    weight, changed = found[0]
    if not str(weight).endswith(".weight") or changed.shape != value.shape:
        raise NotCarried(f"{layer} has another shape in the GGUF of the base ({weight})")
    return str(weight), changed


def _require_same(
    whole: tuple[str, torch.Tensor], parts: tuple[str, torch.Tensor], layer: str
) -> None:
    if whole[0] != parts[0] or not torch.allclose(whole[1], parts[1], rtol=1e-4, atol=1e-5):
        raise NotCarried(f"{layer} has its columns rearranged in the GGUF of the base")


_nothing: Callable[[], None] = lambda: None  # noqa: E731
