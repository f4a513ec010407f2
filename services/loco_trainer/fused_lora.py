"""A LoRA layer as one autograd function: y = x W^T + (alpha / r) (x A^T) B^T, with W frozen.

PEFT's own forward pass runs the base layer and the adapter one after the other and casts in between:
some ten kernels a layer, and activations kept twice. Here it is three matrix products forward and
six back, the adapter's sum lands in the base's output, and a 4-bit base is unpacked where it is
needed and not kept. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear

_ADAPTER = "default"


class _FusedLora(torch.autograd.Function):
    """Forward and backward of one adapted layer."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        base: torch.nn.Module,
        scale: float,
    ) -> torch.Tensor:
        """The layer's output.

        Args:
            ctx: keeps what the backward pass needs.
            x: [..., inputs].
            a: [r, inputs], any float type.
            b: [outputs, r].
            base: the frozen linear layer.
            scale: alpha / r.

        Returns:
            [..., outputs] of `x`'s type.
        """
        a16, b16 = a.to(x.dtype), b.to(x.dtype)
        y = linear(x, weight_of(base, x.dtype), getattr(base, "bias", None))
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a16.t()
        y.view(-1, y.shape[-1]).addmm_(low, b16.t(), alpha=scale)
        ctx.save_for_backward(flat, low, a16, b16)
        ctx.base, ctx.scale, ctx.shape = base, scale, x.shape
        ctx.adapter_type = a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `x`, `a` and `b`."""
        flat, low, a16, b16 = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        dlow = (dy @ b16).mul_(ctx.scale)
        db = (dy.t() @ low).mul_(ctx.scale).to(ctx.adapter_type)
        da = (dlow.t() @ flat).to(ctx.adapter_type)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight_of(ctx.base, dy.dtype)
            dx.addmm_(dlow, a16)
            dx = dx.view(ctx.shape)
        return dx, da, db, None, None


def weight_of(base: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """A frozen linear layer's weight, [outputs, inputs]; a 4-bit one unpacked to `dtype`."""
    weight = base.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight if weight.dtype == dtype else weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight, state).to(dtype)


def fuse(model: PeftModel) -> int:
    """Has every plain LoRA layer of a model compute in one function; returns how many.

    Layers with dropout and kinds that are no linear layer keep PEFT's forward pass.
    """
    fused = 0
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _is_plain(layer):
            layer.forward = _Forward(layer)
            fused += 1
    return fused


class _Forward:
    """Takes the place of a layer's `forward`."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._a = layer.lora_A[_ADAPTER]
        self._b = layer.lora_B[_ADAPTER]
        self._base = layer.get_base_layer()
        self._scale = float(layer.scaling[_ADAPTER])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._layer.disable_adapters:
            out: torch.Tensor = self._base(x)
            return out
        fused: torch.Tensor = _FusedLora.apply(
            x, self._a.weight, self._b.weight, self._base, self._scale
        )
        return fused


def _is_plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    return (
        isinstance(base, torch.nn.Linear)  # bitsandbytes' 4-bit layer is one too
        and list(layer.lora_A) == [_ADAPTER]
        and isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity)
        and not layer.use_dora[_ADAPTER]
        and not layer.lora_bias[_ADAPTER]
    )
