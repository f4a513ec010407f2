"""What one decode step is made of besides matrix products, in plain torch: for the CPU, for prompts, and
as the measure of the Triton versions (decode_kernels.py).

Roundings are those of Hugging Face's layers, but for the rotation, which is computed in float32.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


class Ops(Protocol):
    """The parts of a step. Both versions take and give the same."""

    #: Whether attention needs to be told how many keys to look at.
    needs_span: bool

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Adds `delta` to the residual stream; gives it, and its RMS norm. All [rows, hidden]."""

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, of [rows, 2 * intermediate] to [rows, intermediate]."""

    def rotate_store(
        self,
        qkv: Tensor,
        table: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Rotates queries and keys of one token a row; writes keys and values to the cache.

        Args:
            qkv: [rows, heads + 2 * kv heads, dim].
            table: [length, dim]: cosines, then sines, float32.
            keys: [slots, kv heads, length, dim]; `values` too.
            slots: [rows], int64; the row's place in the cache.
            positions: [rows], int64; the token's place in its sequence.

        Returns:
            The rotated queries, [rows, heads, dim].
        """

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
        span: int | None,
    ) -> Tensor:
        """Attention of one token a row to the keys 0 … position of its slot.

        Args:
            queries: [rows, heads, dim].
            keys: [slots, kv heads, length, dim]; `values` too.
            slots: [rows].
            positions: [rows].
            span: more than any position, where the version needs it; None: the cache's length.

        Returns:
            [rows, heads * dim].
        """


class TorchOps:
    """Plain torch."""

    needs_span = True

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As in `Ops`."""
        if delta is not None:
            x = x + delta
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return x, weight * wide.to(x.dtype)

    def gate(self, gate_up: Tensor) -> Tensor:
        """As in `Ops`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def rotate_store(
        self,
        qkv: Tensor,
        table: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """As in `Ops`."""
        kv_heads = keys.shape[1]
        heads = qkv.shape[1] - 2 * kv_heads
        turned = rotated(qkv[:, : heads + kv_heads], table[positions][:, None])
        keys[slots, :, positions] = turned[:, heads:]
        values[slots, :, positions] = qkv[:, heads + kv_heads :]
        return turned[:, :heads]

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
        span: int | None,
    ) -> Tensor:
        """As in `Ops`. The queries of one kv head stand where SDPA expects a sequence."""
        rows, heads, dim = queries.shape
        kv_heads, span = keys.shape[1], span or keys.shape[2]
        seen = torch.arange(span, device=keys.device) <= positions[:, None]
        out = F.scaled_dot_product_attention(
            queries.reshape(rows, kv_heads, heads // kv_heads, dim),
            keys[slots, :, :span],
            values[slots, :, :span],
            attn_mask=seen[:, None, None],
        )
        return out.reshape(rows, heads * dim)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding of halves, as in Hugging Face's Llama, in float32.

    Args:
        x: […, dim].
        turn: […, dim], cosines, then sines, of the dim / 2 frequencies.
    """
    cos, sin = turn.chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def choose(attention: str, device: torch.device) -> Any:
    """The ops of a device: `triton`, `torch`, or `auto`: Triton on a GPU."""
    if attention == "torch" or (attention == "auto" and device.type != "cuda"):
        return TorchOps()
    from decode_kernels import TritonOps

    return TritonOps()
