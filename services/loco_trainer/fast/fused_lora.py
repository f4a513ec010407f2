"""LoRA layers as one autograd function: y = x W^T + (alpha / r) (x A^T) B^T, with W frozen.

PEFT's own forward pass runs the base layer and the adapter one after the other and casts in between:
some ten kernels a layer, and activations kept twice. Here the adapter's part is added to the base's
output where it lies, layers that read the same input (q, k and v) go through it together, and a 4-bit
base is unpacked where it is needed and not kept. Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large
Language Models", eq. 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear

_ADAPTER = "default"
#: Layers of one module that read the same input, in the order in which they are called.
_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class _Frozen:
    """What a group's layers have beside their adapters."""

    bases: tuple[torch.nn.Module, ...]
    scales: tuple[float, ...]


class _FusedLora(torch.autograd.Function):
    """Forward and backward of layers that read the same input."""

    @staticmethod
    def forward(
        ctx: Any, frozen: _Frozen, x: torch.Tensor, *pairs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The layers' outputs.

        Args:
            ctx: keeps what the backward pass needs.
            frozen: base layers and scales.
            x: [..., inputs].
            pairs: A and B of each layer, [r, inputs] and [outputs, r], any float type.

        Returns:
            [..., outputs] of each layer, of `x`'s type.
        """
        a = torch.cat(pairs[::2]).to(x.dtype)
        b = [part.to(x.dtype) for part in pairs[1::2]]
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()
        outputs = []
        for base, scale, part, up in zip(
            frozen.bases, frozen.scales, _split(low, pairs), b, strict=True
        ):
            y = linear(x, weight_of(base, x.dtype), getattr(base, "bias", None))
            y.view(-1, y.shape[-1]).addmm_(part, up.t(), alpha=scale)
            outputs.append(y)
        ctx.save_for_backward(flat, low, a, *b, *pairs)
        ctx.frozen, ctx.shape = frozen, x.shape
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of `x` and of each A and B."""
        flat, low, a, *rest = ctx.saved_tensors
        frozen, count = ctx.frozen, len(ctx.frozen.bases)
        b, pairs = rest[:count], rest[count:]
        flats = [dy.reshape(-1, dy.shape[-1]) for dy in slopes]
        low_slope = torch.empty_like(low)
        db = []
        for dy, up, scale, part, into in zip(
            flats, b, frozen.scales, _split(low, pairs), _split(low_slope, pairs), strict=True
        ):
            into.copy_((dy @ up).mul_(scale))
            db.append((dy.t() @ part).mul_(scale).to(pairs[0].dtype))
        da = (low_slope.t() @ flat).to(pairs[0].dtype).split([p.shape[0] for p in pairs[::2]])
        dx = None
        if ctx.needs_input_grad[1]:
            dx = low_slope @ a
            for dy, base in zip(flats, frozen.bases, strict=True):
                dx.addmm_(dy, weight_of(base, dy.dtype))
            dx = dx.view(ctx.shape)
        return None, dx, *(t for pair in zip(da, db, strict=True) for t in pair)


def _split(low: torch.Tensor, pairs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The columns of each layer's rank."""
    return low.split([a.shape[0] for a in pairs[::2]], dim=1)


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
    for module in model.modules():
        plain = {name: child for name, child in module.named_children() if _is_plain(child)}
        for names in _GROUPS:
            members = [plain.pop(name) for name in names if name in plain]
            if members:
                _Together(members)
                fused += len(members)
        for layer in plain.values():
            _Together([layer])
        fused += len(plain)
    return fused


def forget(model: Any) -> None:
    """Lets go of what a forward pass that broke off left for layers it did not come to.

    It holds the whole graph of that pass, and so the memory whose want may have ended it.
    """
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Member):
            module.forward.group.forget()


class _Together:
    """Takes the place of the `forward` of layers that are called one after the other on one input.

    The first computes all of them; the others hand out what it left for them.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._pairs = [part[_ADAPTER] for layer in layers for part in (layer.lora_A, layer.lora_B)]
        self._frozen = _Frozen(
            tuple(layer.get_base_layer() for layer in layers),
            tuple(float(layer.scaling[_ADAPTER]) for layer in layers),
        )
        self._input: torch.Tensor | None = None
        self._left: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(layers):
            layer.forward = _Member(self, number)

    def output(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """Output of one of the layers."""
        if self._layers[number].disable_adapters:
            plain: torch.Tensor = self._frozen.bases[number](x)
            return plain
        if number not in self._left or self._input is not x:
            weights = (layer.weight for layer in self._pairs)
            outputs = _FusedLora.apply(self._frozen, x, *weights)
            self._input, self._left = x, dict(enumerate(outputs))
        out = self._left.pop(number)
        if not self._left:
            self._input = None
        return out

    def forget(self) -> None:
        """Lets go of outputs nobody has asked for."""
        self._input, self._left = None, {}


@dataclass(frozen=True)
class _Member:
    """The `forward` of one layer of a group."""

    group: _Together
    number: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.output(self.number, x)


def _is_plain(layer: Any) -> bool:
    if not isinstance(layer, LoraLayer):
        return False
    base: Any = layer.get_base_layer()
    return (
        isinstance(base, torch.nn.Linear)  # bitsandbytes' 4-bit layer is one too
        and list(layer.lora_A) == [_ADAPTER]
        and isinstance(layer.lora_dropout[_ADAPTER], torch.nn.Identity)
        and not layer.use_dora[_ADAPTER]
        and not layer.lora_bias[_ADAPTER]
    )
