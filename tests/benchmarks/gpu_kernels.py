"""How long a step takes with kernels as we put them in place, and by liger-kernel's own patching.

    PYTHONPATH=shared:services .venv-train/bin/python tests/benchmarks/gpu_kernels.py

One JSON line an architecture, and one for the imports; needs an NVIDIA GPU. Twelve layers of each
model's shape, random bfloat16 weights, LoRA on all linear layers.
"""

import json
import statistics
import subprocess
import sys
from typing import Any

import torch
from liger_kernel.transformers import monkey_patch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from loco_trainer.fast import fused_lora, kernels

_WIDE = {"hidden_size": 2560, "intermediate_size": 9728, "num_attention_heads": 32}
_SHAPE = _WIDE | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000}
_STEPS = 30
_IMPORTS = {
    "operators": "import liger_kernel.ops",
    "patching": "import liger_kernel.transformers.monkey_patch",
}


def ligers(model: Any) -> None:
    """liger-kernel's rotation and gate, put in place by its own patching of an instance."""
    monkey_patch._apply_liger_kernel_to_instance(
        model, rms_norm=False, cross_entropy=False, fused_linear_cross_entropy=False
    )


def main() -> None:
    """Prints the figures."""
    print(json.dumps({"import_seconds": {name: import_seconds(c) for name, c in _IMPORTS.items()}}))
    ways = {"none": lambda _: None, "ours": kernels.install, "liger's patching": ligers}
    for architecture in ("qwen3", "llama", "gemma", "phi3"):  # the last two have none of ours
        for rows, length in ((8, 165), (32, 512)):  # bound by launches, and by the GPU
            seconds = {n: step_seconds(architecture, way, rows, length) for n, way in ways.items()}
            figures = {"architecture": architecture, "rows": rows, "length": length}
            print(json.dumps(figures | {"milliseconds": seconds}), flush=True)


def import_seconds(code: str) -> float:
    """Seconds of an import after torch and transformers, in a fresh process; the second of two."""
    timed = f"import torch, transformers, time; t = time.time(); {code}; print(time.time() - t)"
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", timed], capture_output=True, check=True)
    return round(float(out.stdout), 2)


def step_seconds(architecture: str, install: Any, rows: int, length: int) -> dict[str, float]:
    """Median and smallest time of forward and backward pass, in milliseconds, launched one by one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture, **_SHAPE, num_hidden_layers=12, pad_token_id=0, eos_token_id=1
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.requires_grad_(False)
    install(model)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    fused_lora.fuse(adapted)
    ids = torch.randint(2, 32000, (rows, length), device="cuda")
    spans = []
    for _ in range(_STEPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        adapted.get_base_model().model(input_ids=ids).last_hidden_state.float().mean().backward()
        end.record()
        end.synchronize()
        spans.append(begin.elapsed_time(end))
    warm = spans[5:]
    return {"median": round(statistics.median(warm), 2), "smallest": round(min(warm), 2)}


if __name__ == "__main__":
    main()
