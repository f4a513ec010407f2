"""Which engine trains.

Engine `peft` (transformers + PEFT) runs anywhere; on a GPU of compute capability 8.0 or more it has
rows end to end, fused layers and recorded steps, and is the faster one. `unsloth` runs on NVIDIA
GPUs only, and is taken by itself where `peft` has none of that. All the rest, from rows to
checkpoints, is the same code (`loco_trainer.loop.fit`).
"""

import os
from importlib.util import find_spec
from pathlib import Path

from loco.contracts.errors import TrainingFailed
from loco.contracts.plans import Engine, Plan
from loco.contracts.specs import TrainSpec
from loco.stage.program import Emitter
from loco_trainer.engines.loaded import Loaded
from loco_trainer.machine.capability import ampere_here
from loco_trainer.machine.imports import hide


def engine_for(spec: TrainSpec) -> Engine:
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


def check_layers(spec: TrainSpec, base: Path) -> None:
    """See `targets.check`; imports torch and transformers, so it comes after `import_first`."""
    from loco_trainer.engines import targets

    targets.check(spec, base)


def load(spec: TrainSpec, plan: Plan, base: Path, emit: Emitter) -> Loaded:
    """Loads the base model as planned and adds the adapter.

    Args:
        spec: the recipe.
        plan: engine, precision, recomputing and layout.
        base: Hugging Face folder of the base model.
        emit: told what differs from the spec.
    """
    if plan.engine == "unsloth":
        from loco_trainer.engines import unsloth as engine
    else:
        if plan.precision != "4bit":
            hide("bitsandbytes")
        from loco_trainer.engines import peft as engine  # type: ignore[no-redef]
    return engine.load(spec, plan, base, emit)


def _unsloth_obstacle() -> str | None:
    """Why unsloth cannot run here, or None."""
    import torch

    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU with CUDA, and torch sees none"
    if find_spec("unsloth") is None:
        return "the package unsloth is not installed"
    return None
