"""Stage export of SmolLM2-135M in each format, in turn: seconds, CPU seconds and bytes.

    .venv-train/bin/python tests/benchmarks/adapter_only.py

The adapter is random, of rank 16 on all linear layers as that of profile `tiny`. The first export of an
adapter alone writes its base, those after it take that. Nothing is downloaded.
"""

import argparse
import io
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from loco.contracts.specs import BaseModelSpec, ExportSpec, Inputs
from loco.recipes import catalog
from loco.stage.program import Emitter
from loco_trainer import export
from loco_trainer.bases import find

REPOSITORY = Path(__file__).parents[2]
MODELS = REPOSITORY / ".loco" / "test-models"


def main() -> None:
    """Prints a table, a row an export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=("merged", "both", "adapter"))
    asked = parser.parse_args()
    base = catalog.base_model(REPOSITORY / "adapters", "smollm2-135m-instruct")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        models = work / "models"
        models.mkdir()
        source = find.resolve(base, "merge", MODELS, Emitter(io.StringIO()))
        (models / source.name).symlink_to(source)
        adapter = _adapter(source, work / "adapter")
        inputs = Inputs(
            job_id="benchmark",
            adapter="math",
            adapter_dir=work,
            models_dir=models,
            locks_dir=work,
            ollama_host="http://127.0.0.1:9",
            files={"train/checkpoints/adapter_model.safetensors": adapter},
        )
        print("| format | seconds | CPU seconds | of which writing the LoRA | new bytes |")
        print("|---|---|---|---|---|")
        for number in range(asked.rounds):
            for name in asked.formats:
                _row(base, inputs, name, work / f"{name}-{number}")


def _row(base: BaseModelSpec, inputs: Inputs, name: str, out: Path) -> None:
    spec = ExportSpec.model_validate(
        {"base_model": base, "model_name": "benchmark", "format": name, "num_ctx": 512}
    )
    out.mkdir()
    started, spent = time.monotonic(), _cpu()
    result = export.run(spec, inputs, out, Emitter(io.StringIO()))
    seconds, cpu = time.monotonic() - started, _cpu() - spent
    size = sum(file.stat().st_size for file in (out / "gguf").iterdir())
    what = name
    if result.served_base:
        what += ", base reused" if result.base_reused else ", base written"
        size += 0 if result.base_reused else result.served_base.size
    print(
        f"| {what} | {seconds:.1f} | {cpu:.1f} | {result.adapter_seconds} | {size / 1e6:.1f} MB |"
    )
    sys.stdout.flush()


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _adapter(base: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    wrapped = get_peft_model(model, lora)
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    wrapped.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder / "adapter_model.safetensors"


if __name__ == "__main__":
    main()
