"""Fused kernels in the place of a model's own norms, rotations and gates.

Each of these is five to ten small kernels in transformers, bound by memory traffic and launches. The
norm is torch's fused one (backward in 50 us where liger-kernel takes 168 and the memory 29: 8192 rows
of 2560 on an H200), rotation and gate are liger-kernel's, in Triton: compiled on first use and kept in
`TRITON_CACHE_DIR` for the next job. They are put in place by hand: liger-kernel's own patching is slower
and looks at no activation (docs/adr/0011).
"""

import importlib
from typing import Any

import torch
from torch.nn.functional import rms_norm

from loco.planning.ways import PLAIN_DECODERS


def install(model: Any) -> None:
    """Puts the fused kernels into a loaded model, where its architecture has them.

    Its norm has to be x / rms(x) * weight, its gate silu(gate(x)) * up(x), and its rotation has to take
    the two halves of a head.
    """
    if model.config.model_type not in PLAIN_DECODERS:
        return
    from liger_kernel.ops import LigerRopeFunction

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
    ) -> Any:
        return LigerRopeFunction.apply(q, k, cos, sin)

    # the attention layers look this function up in their module
    importlib.import_module(type(model).__module__).apply_rotary_pos_emb = rotate  # type: ignore[attr-defined]
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _Norm(module)
        elif hasattr(module, "gate_proj") and type(module.act_fn).__name__.startswith("SiLU"):
            module.forward = _Gate(module)


class _Norm:
    """x / rms(x) * weight in one kernel. Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._module.weight
        # autocast would widen it to float32, and attention and the vocabulary's product with it
        with torch.autocast(x.device.type, enabled=False):
            return rms_norm(x, weight.shape, weight, self._module.variance_epsilon)


class _Gate:
    """down(silu(gate(x)) * up(x)), the middle part in one kernel."""

    def __init__(self, module: Any) -> None:
        from liger_kernel.ops import LigerSiLUMulFunction

        self._function = LigerSiLUMulFunction
        self._module = module

    def __call__(self, x: torch.Tensor) -> Any:
        inner = self._function.apply(self._module.gate_proj(x), self._module.up_proj(x))
        return self._module.down_proj(inner)
