"""Engine peft: transformers and PEFT, on a CPU or any GPU torch knows."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loco.program import Emitter
from loco.specs import TrainSpec
from loco_trainer.base_models import read_config
from loco_trainer.engines import Loaded, holds_4bit

_PLAIN_ATTENTION_LENGTH = 256


def load(spec: TrainSpec, base: Path, emit: Emitter) -> Loaded:
    """Loads the base (4-bit on a GPU when asked for) and adds a LoRA adapter seeded by the spec."""
    four_bit = holds_4bit(spec)
    compute = _compute_dtype()
    # On a CPU float32 weights under bfloat16 autocast are faster than bfloat16 weights (2.2 s
    # against 2.7 s a step of 8 * 85 tokens, 135M parameters, 2 cores with avx512_bf16).
    dtype = compute if torch.cuda.is_available() else torch.float32
    quantize = {}  # not None: that would hide the config of a base stored in 4 bits
    if four_bit and "quantization_config" not in read_config(base):
        quantize["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    if spec.load_in_4bit and not four_bit:
        emit.log("load_in_4bit needs CUDA; the base is held in 32 bits here.")
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        device_map={"": 0} if torch.cuda.is_available() else None,
        attn_implementation=_attention(spec),
        **quantize,
    )
    if torch.cuda.is_available():
        # Without recomputing, 8 rows of 200 tokens take 42 GB on a 4B model instead of 10.
        # PEFT's prepare_model_for_kbit_training would also widen embeddings and norms to float32:
        # 1.2 GB more at the peak on a 4B model. The adapter is float32 either way.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(spec.seed)
    targets = spec.lora.target_modules
    model = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.lora.r,
            lora_alpha=spec.lora.alpha,
            lora_dropout=spec.lora.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
        ),
    )
    name = str(compute).removeprefix("torch.")
    return Loaded(
        model=model,
        dtype=f"4-bit, computing in {name}" if four_bit else name,
        precision="bf16" if compute is torch.bfloat16 else "fp32",
        loss_type="chunked_nll",
    )


def _attention(spec: TrainSpec) -> str:
    """Plain attention for short rows on a CPU, else torch's fused one.

    The fused backward pass is slow there: a step of 8 * 80 tokens takes 2.5 s with plain attention
    and 3.0 s with the fused one (135M parameters, one core). Plain attention keeps a length * length
    matrix a head, so long rows would need too much memory.
    """
    short = spec.max_length <= _PLAIN_ATTENTION_LENGTH
    return "eager" if short and not torch.cuda.is_available() else "sdpa"


def _compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
