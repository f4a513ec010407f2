"""Engine unsloth: about twice as fast as peft on an NVIDIA GPU, in less memory.

API of unsloth 2026.10.7. It cannot be imported without a GPU, so `engines.choose` looks first.
"""

# Before trl, transformers and peft: it patches them as they are imported.
import unsloth  # isort: skip  # noqa: F401  # pylint: disable=unused-import

from pathlib import Path

import torch
from unsloth import FastLanguageModel

from loco.program import Emitter
from loco.specs import TrainSpec
from loco_trainer.engines import BLOCK_LINEARS, Loaded, holds_4bit


def load(spec: TrainSpec, base: Path, emit: Emitter) -> Loaded:  # noqa: ARG001 (as every engine)
    """Loads the base (4-bit when asked for) and adds a LoRA adapter seeded by the spec."""
    four_bit = holds_4bit(spec)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    model, _tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(base),
        max_seq_length=spec.max_length,
        dtype=dtype,
        load_in_4bit=four_bit,
        local_files_only=True,
    )
    targets = spec.lora.target_modules
    model = FastLanguageModel.get_peft_model(
        model,
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=list(BLOCK_LINEARS if isinstance(targets, str) else targets),
        bias="none",
        use_gradient_checkpointing="unsloth",
        random_state=spec.seed,
    )
    name = str(dtype).removeprefix("torch.")
    return Loaded(
        model=model,
        dtype=f"4-bit, computing in {name}" if four_bit else name,
        precision="bf16" if dtype is torch.bfloat16 else "fp16",
        loss_type="nll",
    )
