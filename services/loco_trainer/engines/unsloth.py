"""Engine unsloth, on NVIDIA GPUs of Turing or newer.

API of unsloth 2026.10.7. It cannot be imported without a GPU, so `engines.choose` looks first.
"""

# Before trl, transformers and peft: it patches them as they are imported.
import unsloth  # isort: skip  # noqa: F401  # pylint: disable=unused-import

import functools
from pathlib import Path

import torch
from unsloth import FastLanguageModel

from loco.contracts.plans import Plan
from loco.contracts.specs import TrainSpec
from loco.stage.program import Emitter
from loco_trainer.data import batches
from loco_trainer.engines.loaded import Loaded
from loco_trainer.engines.targets import BLOCK_LINEARS, named_layers
from loco_trainer.fast import forward


def load(spec: TrainSpec, plan: Plan, base: Path, emit: Emitter) -> Loaded:  # noqa: ARG001 (as every engine)
    """Loads the base (in 4 bits where planned) and adds a LoRA adapter seeded by the spec."""
    four_bit = plan.precision == "4bit"
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(base),
        max_seq_length=spec.max_length,
        dtype=dtype,
        load_in_4bit=four_bit,
        local_files_only=True,
        trust_remote_code=False,
    )
    targets = named_layers(model, spec)
    model = FastLanguageModel.get_peft_model(
        model,
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=list(BLOCK_LINEARS if isinstance(targets, str) else targets),
        bias="none",
        use_gradient_checkpointing="unsloth" if plan.gradient_checkpointing else False,
        random_state=spec.seed,
    )
    name = str(dtype).removeprefix("torch.")
    return Loaded(
        model=model,
        dtype=f"4-bit, computing in {name}" if four_bit else name,
        lay_out=functools.partial(batches.padded, filler=tokenizer.pad_token_id or 0),
        losses=forward.losses_of(model, tight=True, positions=False),
        recompute=functools.partial(
            FastLanguageModel.for_training, model, use_gradient_checkpointing="unsloth"
        ),
        autocast=dtype,
    )
