"""The Hugging Face folder of a Qwen2 GGUF, in bfloat16, in seconds: a pool of processes dequantizes.

    python tests/benchmarks/learning/gguf_to_hf.py --gguf model.gguf --small FOLDER --out DIR

`--small` holds config.json and the tokenizer's files, as transformers reads them out of the GGUF once
(its own way to the weights takes minutes). Needs the package gguf. Equal, bit for bit, to
`AutoModelForCausalLM.from_pretrained(…, gguf_file=…)` in bfloat16.
"""

import argparse
import json
import mmap
import multiprocessing
import os
import shutil
import struct
import sys
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

#: Numbers a process dequantizes at once: 16 MB of float32.
_AT_ONCE = 1 << 22
#: Sizes of GGUF's plain value types; 8 is a string, 9 an array.
_PLAIN = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
#: GGUF's names of a layer's modules to Hugging Face's.
MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF."""

    name: str  # in Hugging Face's words
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # rows first
    offset: int  # of its first byte in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the GGUF."""
        numbers, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // numbers * size


@dataclass(frozen=True)
class Task:
    """Some rows of a tensor, and where they go."""

    tensor: Tensor
    first: int
    rows: int
    source: Path
    target: Path
    at: int  # byte in the target


def convert(gguf: Path, small: Path, out: Path, processes: int) -> None:
    """Writes model.safetensors, and beside it what is in `small`.

    Raises:
        ValueError: no GGUF of version 3, or of another architecture.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(small.iterdir()):
        shutil.copyfile(file, out / file.name)
    tensors = read(gguf)
    target = out / "model.safetensors"
    header, places, at = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in tensors:
        size = 2 * prod(tensor.shape)
        spot = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, at + size]}
        header[tensor.name] = spot  # type: ignore[assignment]
        places.append(at)
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(start + at)
    tasks = []
    for tensor, place in zip(tensors, places, strict=True):
        rows, width = prod(tensor.shape[:-1]), tensor.shape[-1]
        step = max(1, _AT_ONCE // width)
        for first in range(0, rows, step):
            to = start + place + 2 * width * first
            tasks.append(Task(tensor, first, min(step, rows - first), gguf, target, to))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for _ in pool.imap_unordered(_write, tasks):
            pass


def read(gguf: Path) -> list[Tensor]:
    """The tensors of a GGUF, by its header alone.

    Raises:
        ValueError: no GGUF of version 3, or of another architecture.
    """
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, count, pairs = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version != 3:
            raise ValueError(f"{gguf.name} is no GGUF of version 3.")
        at, known = 24, {}
        for _ in range(pairs):
            key, at = _text(data, at)
            known[key], at = _value(data, at)
        if known.get("general.architecture") != "qwen2":
            raise ValueError(f"{gguf.name} is {known.get('general.architecture')}, not qwen2.")
        found = []
        for _ in range(count):
            name, at = _text(data, at)
            (dimensions,) = struct.unpack_from("<I", data, at)
            shape = struct.unpack_from(f"<{dimensions}Q", data, at + 4)
            kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dimensions)
            at += 16 + 8 * dimensions
            found.append((name, GGMLQuantizationType(kind), tuple(reversed(shape)), offset))
        align = known.get("general.alignment", 32)
        start = -(-at // align) * align
    return [Tensor(_named(n), kind, shape, start + offset) for n, kind, shape, offset in found]


def _write(task: Task) -> None:
    """Dequantizes some rows and writes them at their place."""
    tensor = task.tensor
    data = np.fromfile(
        task.source,
        np.uint8,
        task.rows * tensor.row_bytes,
        offset=tensor.offset + task.first * tensor.row_bytes,
    ).reshape(task.rows, tensor.row_bytes)
    if tensor.kind == GGMLQuantizationType.F32:
        values = data.view(np.float32)
    else:
        values = dequantize(data, tensor.kind)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # to the nearest, to even where two are as near, as torch rounds
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    with task.target.open("r+b", buffering=0) as file:
        view = memoryview(rounded).cast("B")
        while view:
            written = os.pwrite(file.fileno(), view, task.at + rounded.nbytes - len(view))
            view = view[written:]


def _named(name: str) -> str:
    *place, kind, what = name.split(".")
    if not place:
        return f"{_OUTER[kind]}.{what}"
    return f"model.layers.{place[1]}.{MODULES[kind]}.{what}"


def _text(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    return data[at + 8 : at + 8 + length].decode(), at + 8 + length


def _value(data: mmap.mmap, at: int) -> tuple[Any, int]:
    """A metadata value and where it ends; arrays are passed over."""
    (kind,) = struct.unpack_from("<I", data, at)
    at += 4
    if kind == 8:
        return _text(data, at)
    if kind == 9:
        inner, count = struct.unpack_from("<IQ", data, at)
        at += 12
        if inner in _PLAIN:
            return None, at + count * _PLAIN[inner]
        if inner != 8:
            raise ValueError("an array of arrays in the GGUF's metadata")
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", data, at)
            at += 8 + length
        return None, at
    size = _PLAIN[kind]
    plain = int.from_bytes(data[at : at + size], "little") if kind not in (6, 12) else None
    return plain, at + size


def main() -> None:
    """Converts, and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--small", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    started = time.monotonic()
    convert(options.gguf, options.small, options.out, options.processes)
    print(json.dumps({"out": str(options.out), "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    sys.exit(main())
