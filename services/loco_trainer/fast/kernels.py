"""Fused kernels in the place of a model's own norms, rotations and gates.

Each of these is five to ten small kernels in transformers, bound by memory traffic and launches. The
norm is torch's fused one (backward in 50 us where liger-kernel takes 168 and the memory 29: 8192 rows
of 2560 on an H200); rotation and gate are liger-kernel's, in Triton, put in place by its own patching:
compiled on first use and kept in `TRITON_CACHE_DIR` for the next job.
"""

from typing import Any

import torch
from torch.nn.functional import rms_norm

from loco.planning.ways import PLAIN_DECODERS

#: Architectures whose rotation and gate liger-kernel has, and that tests/trainer/test_gpu.py compares.
PATCHED = (*PLAIN_DECODERS, "gemma", "gemma2", "gemma3_text", "phi3")


def install(model: Any) -> None:
    """Puts the fused kernels that an architecture has into a loaded model."""
    kind = model.config.model_type
    if kind in PATCHED:
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(
            model, rms_norm=False, cross_entropy=False, fused_linear_cross_entropy=False
        )
    if kind in PLAIN_DECODERS:  # others' norms are no plain x / rms(x) * weight
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = _Norm(module)


class _Norm:
    """x / rms(x) * weight in one kernel. Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._module.weight
        # autocast would widen it to float32, and attention and the vocabulary's product with it
        with torch.autocast(x.device.type, enabled=False):
            return rms_norm(x, weight.shape, weight, self._module.variance_epsilon)
