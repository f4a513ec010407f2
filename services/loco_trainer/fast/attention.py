"""Attention over rows laid end to end: each token sees the earlier ones of its own row only.

Registered with transformers under `NAME`; a model loaded with that attention gets `starts` and
`longest` of the batch through its forward pass and needs no mask.
"""

import inspect
import itertools
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from loco_trainer.machine.capability import ampere_here

NAME = "loco_end_to_end"

#: Rows up to this long are computed with plain matrix products on a CPU: the fused kernel's
#: backward pass is slow there (2.5 s against 3.0 s a step of 8 * 80 tokens, 135M parameters).
_PLAIN_LENGTH = 256
#: cuDNN's is the fastest on Hopper; where one cannot run, the next is taken.
_FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: None,
    *,
    scaling: float,
    starts: torch.Tensor,
    longest: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row.

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, key_value_heads, tokens, head_dim].
        value: as `key`.
        scaling: factor of the scores.
        starts: [rows + 1] int32, where the rows begin, and the end of the last.
        longest: longest row, in tokens.

    Returns:
        [1, tokens, heads, head_dim], and no attention weights.
    """
    count = len(starts) - 1
    if query.is_cuda and query.shape[2] == count * longest:  # rows of one length: a plain batch
        batch = (
            t.unflatten(2, (count, longest)).squeeze(0).transpose(0, 1) for t in (query, key, value)
        )
        with sdpa_kernel(_FASTEST_FIRST, set_priority=True):
            out = scaled_dot_product_attention(
                *batch, is_causal=True, scale=scaling, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    if query.is_cuda and query.dtype != torch.float32 and ampere_here():
        flat = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
        out = varlen_attn(
            *flat,
            starts,
            starts,
            longest,
            longest,
            scale=scaling,
            window_size=(-1, 0),
            **_GROUPED,
        )
        return out.unsqueeze(0), None
    rows = []
    bounds = starts.tolist()
    for start, end in itertools.pairwise(bounds):
        if end > start:
            part = (t[:, :, start:end] for t in (query, key, value))
            rows.append(_of_one_row(*part, scaling=scaling))
    return torch.cat(rows, dim=2).transpose(1, 2), None


def _of_one_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float
) -> torch.Tensor:
    length = query.shape[2]
    if query.is_cuda or length > _PLAIN_LENGTH:
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = (query @ key.transpose(2, 3)) * scaling
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = scores.masked_fill(future, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value


AttentionInterface.register(NAME, attention)
