"""Engine peft: transformers and PEFT, on a CPU or any GPU torch knows."""

import functools
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from loco.contracts.plans import Plan
from loco.contracts.specs import TrainSpec
from loco.stage.program import Emitter
from loco_trainer.bases.find import read_config
from loco_trainer.data import batches
from loco_trainer.engines.loaded import Loaded
from loco_trainer.engines.targets import beside_text, named_layers
from loco_trainer.fast import attention, forward, fused_lora


def load(spec: TrainSpec, plan: Plan, base: Path, emit: Emitter) -> Loaded:
    """Loads the base (in 4 bits where planned) and adds a LoRA adapter seeded by the spec."""
    compute = _compute_dtype()
    on_gpu = torch.cuda.is_available()
    four_bit = plan.precision == "4bit"
    quantize: dict[str, Any] = {}  # not None: that would hide the config of a base stored in 4 bits
    if four_bit and "quantization_config" not in read_config(base):
        quantize["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        trust_remote_code=False,
        use_safetensors=True,
        # On a CPU float32 weights under bfloat16 autocast are faster than bfloat16 weights (2.2 s
        # against 2.7 s a step of 8 * 85 tokens, 135M parameters, 2 cores with avx512_bf16).
        dtype=compute if on_gpu else torch.float32,
        device_map={"": 0} if on_gpu else None,
        attn_implementation=attention.NAME if plan.padding_free else _attention(base),
        **quantize,
    )
    # PEFT's prepare_model_for_kbit_training would widen embeddings and norms to float32: 1.2 GB
    # more at the peak on a 4B model. The adapter is float32 either way.
    model.requires_grad_(False)
    fused = on_gpu and compute is torch.bfloat16 and _fuse(model, emit)
    recompute = functools.partial(_recompute, model, dropout=spec.lora.dropout > 0)
    if plan.gradient_checkpointing:
        recompute()
    torch.manual_seed(spec.seed)
    adapted: PeftModel = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=spec.lora.r,
            lora_alpha=spec.lora.alpha,
            lora_dropout=spec.lora.dropout,
            target_modules=named_layers(model, spec),
            exclude_modules=beside_text(model),
        ),
    )
    if fused and not spec.lora.dropout:
        fused_lora.fuse(adapted)
        autocast = None
    else:
        autocast = None if compute is torch.float32 else compute
    name = str(compute).removeprefix("torch.")
    return Loaded(
        model=adapted,
        dtype=f"4-bit, computing in {name}" if four_bit else name,
        lay_out=batches.end_to_end
        if plan.padding_free
        else functools.partial(batches.padded, filler=_filler(model)),
        losses=forward.losses_of(adapted, tight=plan.gradient_checkpointing),
        recompute=recompute,
        autocast=autocast,
    )


def _recompute(model: Any, *, dropout: bool) -> None:
    """Has activations computed again in the backward pass; with dropout from the same draws."""
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": dropout})


def _fuse(model: Any, emit: Emitter) -> bool:
    from importlib.util import find_spec

    if find_spec("liger_kernel") is None:
        emit.log("liger-kernel is not installed (services/requirements/gpu.txt): steps are slower.")
    else:
        from loco_trainer.fast import kernels

        kernels.install(model)
    return True


def _attention(base: Path) -> str | None:
    """Which of transformers' attentions; None: the one it chooses, which is torch's fused one.

    That one passes over a cap on the scores (Gemma 2's tanh) without a word.
    """
    config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def _filler(model: Any) -> int:
    """A token ID for padded places, which are masked: any will do."""
    return int(model.config.get_text_config().pad_token_id or 0)


def _compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32 (float16 on older GPUs)."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
