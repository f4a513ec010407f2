"""Which engine trains, and what an engine gives: a model with an adapter, and its loss on a batch.

Engine `peft` (transformers + PEFT) runs anywhere; on a GPU of compute capability 8.0 or more it has
rows end to end, fused layers and recorded steps, and is the faster one. `unsloth` runs on NVIDIA
GPUs only, and is taken by itself where `peft` has none of that. All the rest, from rows to
checkpoints, is the same code (`loco_trainer.fitting`).
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loco.errors import TrainingFailed
from loco.plan_ways import AMPERE
from loco.plans import Engine, Plan
from loco.program import Emitter
from loco.specs import TrainSpec
from loco_trainer.imports import hide

if TYPE_CHECKING:
    import torch

    from loco_trainer.batches import Batch
    from loco_trainer.rows import Row

#: The linear layers of a transformer block, by the names Llama, Qwen, Mistral and Gemma share.
BLOCK_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Loaded:
    """A base model with a fresh adapter, ready to train."""

    #: PEFT's model.
    model: Any
    #: Type the forward pass computes in, for people: `bfloat16`, `4-bit, computing in bfloat16`.
    dtype: str
    #: Lays the rows of one forward pass out as tensors.
    lay_out: "Callable[[list[Row]], Batch]"
    #: Negative log-likelihood of each answer token of a batch, [answers] in nats.
    losses: "Callable[[Batch], torch.Tensor]"
    #: Has activations computed again in the backward pass from now on, to save memory.
    recompute: Callable[[], None]
    #: Type autocast computes matrix products in; none: everything is in its type already.
    autocast: "torch.dtype | None" = None

    def computing(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast is None:
            return nullcontext()
        import torch

        context: AbstractContextManager[Any] = torch.autocast(
            "cuda" if torch.cuda.is_available() else "cpu", dtype=self.autocast
        )
        return context


def choose(spec: TrainSpec) -> Engine:
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
    if spec.engine != "auto":
        return spec.engine
    return "peft" if obstacle or ampere_here() else "unsloth"


@cache
def ampere_here() -> bool:
    """Whether this process's GPU has bfloat16 and FlashAttention over rows of unequal length."""
    import torch

    if not torch.cuda.is_available():
        return False
    major, minor = torch.cuda.get_device_capability()
    return major + minor / 10 >= AMPERE


def keep_kernels(cache_dir: Path) -> None:
    """To be called before torch is imported.

    Args:
        cache_dir: kernels that are compiled are kept below it for the next job.
    """
    kept = cache_dir / "kernels"
    os.environ.setdefault("TRITON_CACHE_DIR", str(kept / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept / "inductor"))
    # unsloth's; without it they go into a folder of the current directory
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(kept / "unsloth"))
    # Memory of one size can then be used for another: what is reserved stays near what is used.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def import_first(engine: Engine) -> None:
    """To be called before transformers is imported: unsloth patches it, trl and peft."""
    if engine == "unsloth":
        import unsloth  # noqa: F401
    else:
        hide("torchao", "sklearn")


def load(spec: TrainSpec, plan: Plan, base: Path, emit: Emitter) -> Loaded:
    """Loads the base model as planned and adds the adapter.

    Args:
        spec: the recipe.
        plan: engine, precision, recomputing and layout.
        base: Hugging Face folder of the base model.
        emit: told what differs from the spec.
    """
    if plan.engine == "unsloth":
        from loco_trainer import engine_unsloth as engine
    else:
        if plan.precision != "4bit":
            hide("bitsandbytes")
        from loco_trainer import engine_peft as engine  # type: ignore[no-redef]
    return engine.load(spec, plan, base, emit)


def check_targets(model: Any, spec: TrainSpec) -> None:
    """Refuses names of layers that the base lacks, and layers whose adapter export could not merge.

    Args:
        model: the base, a transformers causal language model.
        spec: the recipe.

    Raises:
        TrainingFailed: says which name, and which there are.
    """
    import torch

    asked = spec.lora.target_modules
    if isinstance(asked, str):
        return
    layers = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in layers.items() if isinstance(module, torch.nn.Linear)}
    tied = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    known = sorted({name.rpartition(".")[2] for name in linear if layers[name] is not tied})
    for target in asked:
        named = {n for n in layers if n == target or n.endswith(f".{target}")}
        if not named:
            fault = f"{spec.base_model.name} has no layer {target}"
        elif named - linear:
            fault = f"{target} is no linear layer"
        elif any(layers[name] is tied for name in named):
            fault = (
                f"{target} shares its weights with the embedding, so an adapter cannot be merged"
            )
        else:
            continue
        raise TrainingFailed(
            f"train.lora.target_modules: {fault}.",
            param="train.lora.target_modules",
            hint=f"Take all-linear, or some of {', '.join(known)}.",
        )


def _unsloth_obstacle() -> str | None:
    """Why unsloth cannot run here, or None."""
    import torch

    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU with CUDA, and torch sees none"
    if find_spec("unsloth") is None:
        return "the package unsloth is not installed"
    return None
