"""Which engine trains: `unsloth` where it can run, `peft` (TRL + PEFT) anywhere.

An engine is a module with `load`: it returns the base model wrapped in a fresh LoRA adapter. All
the rest, from rows to checkpoints, is the same code (`loco_trainer.fitting`).
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from loco.errors import TrainingFailed
from loco.program import Emitter
from loco.specs import TrainSpec

EngineName = Literal["unsloth", "peft"]

#: The linear layers of a transformer block, by the names Llama, Qwen, Mistral and Gemma share.
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Loaded:
    """A base model with a fresh adapter, ready to train."""

    model: Any
    #: Type the forward pass computes in, for people: `bfloat16`, `4-bit, computing in bfloat16`.
    dtype: str
    #: Type autocast computes matrix products in; `fp32` is no autocast.
    precision: Literal["fp32", "bf16", "fp16"]
    #: TRL's loss: `chunked_nll` projects answer tokens only; unsloth brings its own fused `nll`.
    loss_type: Literal["nll", "chunked_nll"]


def choose(spec: TrainSpec) -> EngineName:
    """The engine for this machine; `spec.engine` can force one.

    Raises:
        TrainingFailed: the forced engine cannot run here; says why.
    """
    obstacle = _unsloth_obstacle()
    if spec.engine == "unsloth" and obstacle:
        raise TrainingFailed(
            f"Engine unsloth cannot run here: {obstacle}.",
            param="train.engine",
            hint="Set train.engine to auto or peft, or train on a machine with an NVIDIA GPU and "
            "services/requirements/gpu.txt installed.",
        )
    if spec.engine == "peft" or obstacle:
        return "peft"
    return "unsloth"


def load(
    name: EngineName, spec: TrainSpec, base: Path, emit: Emitter, *, cache_dir: Path
) -> Loaded:
    """Loads the base model and adds the adapter.

    Args:
        name: the engine.
        spec: the recipe.
        base: Hugging Face folder of the base model.
        emit: told what differs from the spec.
        cache_dir: unsloth writes the modules it generates below it.
    """
    # unsloth patches trl and transformers, so it must be the first of them to be imported
    if name == "unsloth":
        # read at its import; without it they go into a folder of the current directory
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_dir / "unsloth_compiled_cache"))
        from loco_trainer import engine_unsloth as engine
    else:
        from loco_trainer import engine_peft as engine  # type: ignore[no-redef]
    return engine.load(spec, base, emit)


def holds_4bit(spec: TrainSpec) -> bool:
    """Whether the frozen base is held in 4 bits: asked for, and possible here (CUDA only)."""
    import torch

    return spec.load_in_4bit and torch.cuda.is_available()


def _unsloth_obstacle() -> str | None:
    """Why unsloth cannot run here, or None."""
    import torch

    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU with CUDA, and torch sees none"
    if find_spec("unsloth") is None:
        return "the package unsloth is not installed"
    return None
