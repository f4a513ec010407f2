"""The Triton versions of decode_ops.TorchOps: one kernel where eager torch starts five to ten.

Attention is FlashAttention's online softmax (Dao 2022, algorithm 1; Milakov & Gimelshein 2018) for one
token a row: a program takes all query heads of one kv head, padded to the 16 rows that tl.dot wants.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Keys a program looks at at once.
BLOCK = 64
#: tl.dot multiplies no fewer rows.
QUERY_ROWS = 16


@triton.jit
def _attend(
    queries,
    keys,
    values,
    out,
    slots,
    positions,
    scale,
    slot_stride,
    head_stride,
    KV_HEADS: tl.constexpr,  # noqa: N803, Triton's habit for constants
    GROUP: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    length = tl.load(positions + row).to(tl.int32) + 1
    r = tl.arange(0, ROWS)
    d = tl.arange(0, DIM)
    place = row.to(tl.int64) * KV_HEADS * GROUP * DIM + (head * GROUP + r[:, None]) * DIM + d[None]
    real = r[:, None] < GROUP
    q = tl.load(queries + place, mask=real, other=0.0)
    start_of = slot * slot_stride + head * head_stride
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for start in range(0, length, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < length
        cell = start_of + n[:, None] * DIM + d[None]
        k = tl.load(keys + cell, mask=inside[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(inside[None], score, float("-inf"))
        # position 0 is always inside, so `higher` is finite from the first block on
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(best - higher)
        v = tl.load(values + cell, mask=inside[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        total = total * shrink + tl.sum(weight, 1)
        best = higher
    acc = acc / total[:, None]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=real)


@triton.jit
def _rotate_store(
    qkv,
    table,
    keys,
    values,
    queries,
    slots,
    positions,
    slot_stride,
    head_stride,
    HEADS: tl.constexpr,  # noqa: N803
    KV_HEADS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    d = tl.arange(0, DIM // 2)
    source = qkv + (row.to(tl.int64) * (HEADS + 2 * KV_HEADS) + head) * DIM + d
    first = tl.load(source)
    second = tl.load(source + DIM // 2)
    cell = slot * slot_stride + position * DIM + d
    if head >= HEADS + KV_HEADS:
        target = values + cell + (head - HEADS - KV_HEADS) * head_stride
        tl.store(target, first)
        tl.store(target + DIM // 2, second)
    else:
        cos = tl.load(table + position * DIM + d)
        sin = tl.load(table + position * DIM + DIM // 2 + d)
        wide = first.to(tl.float32)
        other = second.to(tl.float32)
        one = (wide * cos - other * sin).to(first.dtype)
        two = (other * cos + wide * sin).to(first.dtype)
        if head >= HEADS:
            target = keys + cell + (head - HEADS) * head_stride
            tl.store(target, one)
            tl.store(target + DIM // 2, two)
        else:
            target = queries + (row.to(tl.int64) * HEADS + head) * DIM + d
            tl.store(target, one)
            tl.store(target + DIM // 2, two)


@triton.jit
def _add_norm(
    x,
    delta,
    weight,
    summed,
    normed,
    eps,
    HIDDEN: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
):
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, WIDTH)
    inside = c < HIDDEN
    value = tl.load(x + row * HIDDEN + c, mask=inside, other=0.0)
    if ADD:
        more = tl.load(delta + row * HIDDEN + c, mask=inside, other=0.0)
        value = (value.to(tl.float32) + more.to(tl.float32)).to(value.dtype)
        tl.store(summed + row * HIDDEN + c, value, mask=inside)
    wide = value.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / HIDDEN + eps)
    # rounded before the weight is applied, as Hugging Face does
    unit = (wide * scale).to(value.dtype).to(tl.float32)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * HIDDEN + c, (unit * w).to(value.dtype), mask=inside)


@triton.jit
def _gate(gate_up, out, INNER: tl.constexpr, WIDTH: tl.constexpr):  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = c < INNER
    gate = tl.load(gate_up + row * 2 * INNER + c, mask=inside, other=0.0)
    up = tl.load(gate_up + row * 2 * INNER + INNER + c, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * INNER + c, (silu * up.to(tl.float32)).to(gate.dtype), mask=inside)


class TritonOps:
    """As decode_ops.TorchOps; dim must be a power of two, 16 or more."""

    needs_span = False

    def add_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As in `Ops`."""
        rows, hidden = x.shape
        x = x.contiguous()
        normed = torch.empty_like(x)
        summed = x if delta is None else torch.empty_like(x)
        width = triton.next_power_of_2(hidden)
        _add_norm[(rows,)](
            x,
            x if delta is None else delta.contiguous(),
            weight,
            summed,
            normed,
            eps,
            HIDDEN=hidden,
            WIDTH=width,
            ADD=delta is not None,
            num_warps=4 if width <= 2048 else 8,
        )
        return summed, normed

    def gate(self, gate_up: Tensor) -> Tensor:
        """As in `Ops`."""
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, inner)
        _gate[(rows, triton.cdiv(inner, 1024))](
            gate_up.contiguous(), out, INNER=inner, WIDTH=1024, num_warps=4
        )
        return out

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
        rows, all_heads, dim = qkv.shape
        kv_heads = keys.shape[1]
        heads = all_heads - 2 * kv_heads
        queries = qkv.new_empty(rows, heads, dim)
        _rotate_store[(rows, all_heads)](
            qkv.contiguous(),
            table,
            keys,
            values,
            queries,
            slots,
            positions,
            keys.stride(0),
            keys.stride(1),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            num_warps=1,
        )
        return queries

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        positions: Tensor,
        span: int | None,
    ) -> Tensor:
        """As in `Ops`; `span` is not used."""
        rows, heads, dim = queries.shape
        kv_heads = keys.shape[1]
        out = torch.empty_like(queries)
        _attend[(rows, kv_heads)](
            queries,
            keys,
            values,
            out,
            slots,
            positions,
            dim**-0.5,
            keys.stride(0),
            keys.stride(1),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            DIM=dim,
            ROWS=QUERY_ROWS,
            BLOCK=BLOCK,
            num_warps=4,
            num_stages=3 if queries.element_size() == 2 else 2,
        )
        return out.view(rows, heads * dim)
