"""llama.cpp's block quantizers in torch, so that a GPU can write GGUF tensors: Q4_K, Q5_K, Q6_K, Q8_0.

The algorithms and constants are those of ggml's reference (`quantize_row_*_ref` and `make_qkx2_quants`,
`make_qx_quants` in ggml/src/ggml-quants.c, MIT), with one lane for each block instead of one loop.
Sums are added in the reference's order, so blocks come out byte for byte the same but where a GPU
rounds a division or a fused product differently. On a CPU ggml itself is faster: see ggml.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

_BLOCK = 256
#: Weights too small to be told from zero (GROUP_MAX_EPS in ggml-quants.c).
_SMALLEST = 1e-15


def quantize(rows: torch.Tensor, tensor_type: str) -> torch.Tensor:
    """Encodes rows of weights as GGUF blocks, on the device they lie on.

    Args:
        rows: [n, width] of any float type; width a multiple of 256 (Q8_0: of 32).
        tensor_type: one of `TYPES`.

    Returns:
        [n, bytes of a row], uint8.
    """
    width, size, encode = TYPES[tensor_type]
    blocks = rows.float().reshape(-1, width)
    encoded = encode(blocks)
    return encoded.reshape(rows.shape[0], rows.shape[1] // width * size)


@dataclass(frozen=True)
class _Affine:
    """How a type with scales and minimums searches them: l = round((x - min) / scale)."""

    levels: int  # the largest l
    first: float  # rmin of make_qkx2_quants
    steps: int


_Q4 = _Affine(levels=15, first=-1.0, steps=20)
_Q5 = _Affine(levels=31, first=-0.5, steps=15)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    head, levels = _affine_block(blocks, _Q4)
    pairs = levels.view(-1, 4, 2, 32)
    return torch.cat([head, (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)], dim=1)


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    head, levels = _affine_block(blocks, _Q5)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    fifth = ((levels >> 4) << shifts).sum(1, dtype=torch.uint8)
    pairs = (levels & 15).view(-1, 4, 2, 32)
    low = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)
    return torch.cat([head, fifth, low], dim=1)


def _affine_block(blocks: torch.Tensor, kind: _Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 bytes d, dmin, scales of each block, and its levels [n, 8, 32] as uint8."""
    # [32, groups]: a group is a column, so that sums over its members add whole rows in order
    x = blocks.view(-1, 32).t().contiguous()
    scale, minimum, levels = _search_affine(x, kind)
    scale, minimum = scale.view(-1, 8), minimum.view(-1, 8)
    most_scale = scale.amax(1, keepdim=True).clamp_min(0) + 0.0  # no -0.0, it has other bytes
    most_minimum = minimum.amax(1, keepdim=True).clamp_min(0) + 0.0
    six = [
        # a negative scale wraps in the reference's uint8 before it is cut to 63
        (
            torch.round(torch.where(most > 0, _divide(63, most), 0.0) * value).to(torch.int32) & 255
        ).clamp_max(63)
        for value, most in ((scale, most_scale), (minimum, most_minimum))
    ]
    d = _divide(most_scale, 63).half()
    dmin = _divide(most_minimum, 63).half()
    step = (d.float() * six[0]).view(1, -1)
    offset = (dmin.float() * six[1]).view(1, -1)
    final = torch.round((x + offset) / step).clamp_(0, kind.levels)
    levels = torch.where(step == 0, levels, final).t().reshape(-1, 8, 32).to(torch.uint8)
    sc, m = (part.to(torch.uint8) for part in six)
    packed = torch.cat(
        [
            sc[:, :4] | (sc[:, 4:] >> 4 << 6),
            m[:, :4] | (m[:, 4:] >> 4 << 6),
            (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4),
        ],
        dim=1,
    )
    return torch.cat([d.view(torch.uint8), dmin.view(torch.uint8), packed], dim=1), levels


def _search_affine(
    x: torch.Tensor, kind: _Affine
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale and negated minimum of each group with the least weighted error: make_qkx2_quants.

    Args:
        x: [32, groups].
        kind: the levels and how finely to search.

    Returns:
        scale [groups], minus the minimum [groups], levels [32, groups] as float.
    """
    # in double because torch's float32 root on a CPU is not correctly rounded
    weight = x.abs() + (_sum(x * x) / 32).double().sqrt().float()
    sum_w, sum_x = _sum(weight), _sum(weight * x)
    low = x.amin(0).clamp_max(0)
    high = x.amax(0)
    flat = high == low
    # flat groups are all zeros (or all one negative number): level 0, found without a search
    spread = torch.where(flat, 1.0, high - low)

    def round_to(inverse: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        return (x - start).mul_(inverse).round_().clamp_(0, kind.levels)

    def error_of(levels: torch.Tensor, scale: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        difference = (levels * scale).add_(start).sub_(x)
        return _sum(difference.mul_(difference).mul_(weight))

    best_inverse, best_start = _divide(kind.levels, spread), low
    scale, minimum = _divide(1, best_inverse), low
    least = error_of(round_to(best_inverse, low), scale, low)
    products = x.new_empty(
        len(x), 3, x.shape[1]
    )  # side by side: a third of the kernels to sum them
    for step in range(kind.steps + 1):
        # the reference goes on from the minimum found so far, and so must this
        finer = _single(kind.first + _single(_single(0.1) * step))
        inverse = _divide(finer + kind.levels, torch.where(flat, 1.0, high - minimum))
        levels = round_to(inverse, minimum)
        torch.mul(levels, weight, out=products[:, 0])
        torch.mul(products[:, 0], x, out=products[:, 1])
        torch.mul(products[:, 0], levels, out=products[:, 2])
        sum_l, sum_xl, sum_l2 = _sum(products)
        divisor = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
        this_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
        above = this_minimum > 0
        this_scale = torch.where(above, sum_xl / sum_l2, this_scale)
        this_minimum = torch.where(above, 0.0, this_minimum)
        error = error_of(levels, this_scale, this_minimum)
        better = (divisor > 0) & (error < least)
        best_inverse = torch.where(better, inverse, best_inverse)
        best_start = torch.where(better, minimum, best_start)
        least = torch.where(better, error, least)
        scale = torch.where(better, this_scale, scale)
        minimum = torch.where(better, this_minimum, minimum)
    levels = torch.where(flat, 0.0, round_to(best_inverse, best_start))
    return torch.where(flat, 0.0, scale), -torch.where(flat, low, minimum), levels


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    x = blocks.view(-1, 16).t().contiguous()
    scale, levels = _search_symmetric(x)
    scale = scale.view(-1, 16)
    most, empty = _signed_peak(scale.t())
    inverse = torch.where(empty, 0.0, _divide(-128, most))
    d = _divide(1, inverse).half()
    eight = torch.round(inverse.view(-1, 1) * scale).clamp_max(127)
    step = (d.float().view(-1, 1) * eight).view(1, -1)
    final = torch.round(x / step).clamp_(-32, 31) + 32
    levels = torch.where(step == 0, levels, final).t().reshape(-1, 2, 4, 32).to(torch.uint8)
    low = levels & 15
    ql = torch.cat([low[:, :, 0] | (low[:, :, 2] << 4), low[:, :, 1] | (low[:, :, 3] << 4)], dim=2)
    high = levels >> 4
    qh = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    encoded = torch.cat(
        [
            ql.flatten(1),
            qh.flatten(1),
            eight.to(torch.int8).view(torch.uint8),
            d.view(-1, 1).view(torch.uint8),
        ],
        dim=1,
    )
    return torch.where(empty.view(-1, 1), torch.zeros_like(encoded), encoded)


def _search_symmetric(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of each group with the least error weighted by x²: make_qx_quants with rmse_type 1.

    Args:
        x: [16, groups].

    Returns:
        scale [groups], levels [16, groups] from 0 to 63 as float.
    """
    most, empty = _signed_peak(x)
    weight = x * x

    def sums(inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = (x * inverse).round_().clamp_(-32, 31)
        return _sum(weight * x * levels), _sum((weight * levels).mul_(levels))

    best_inverse = _divide(-32, most)
    sum_lx, sum_l2 = sums(best_inverse)
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, 0.0)
    best = scale * sum_lx
    for step in range(-9, 10):
        if step == 0:
            continue
        inverse = _divide(-(32 + _single(_single(0.1) * step)), most)
        sum_lx, sum_l2 = sums(inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        best_inverse = torch.where(better, inverse, best_inverse)
        scale = torch.where(better, sum_lx / sum_l2, scale)
        best = torch.where(better, scale * sum_lx, best)
    levels = (x * best_inverse).round_().clamp_(-32, 31).add_(32)
    return torch.where(empty, 0.0, scale), torch.where(empty, 0.0, levels)


def _signed_peak(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first member of each column of [members, columns] with the largest size; is it nothing?

    1 stands where it is nothing, so that one can divide by it.
    """
    size = x.abs()
    most = size.amax(0)
    place = torch.arange(len(x), device=x.device).view(-1, 1)
    first = torch.where(size == most, place, len(x)).amin(0)
    peak = x.gather(0, first.clamp_max(len(x) - 1).view(1, -1)).view(-1)
    empty = most < _SMALLEST
    return torch.where(empty, 1.0, peak), empty


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    d = _divide(blocks.abs().amax(1, keepdim=True), 127)
    # ggml rounds halves away from zero here (roundf), torch to even
    x = blocks * torch.where(d > 0, _divide(1, d), 0.0)
    levels = torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x))
    return torch.cat([d.half().view(torch.uint8), levels.to(torch.int8).view(torch.uint8)], dim=1)


def _sum(members: torch.Tensor) -> torch.Tensor:
    """Sums [members, columns] over members, first to last: the reference's order."""
    total = members[0].clone()
    for member in members[1:]:
        total += member
    return total


def _divide(number: float | torch.Tensor, by: float | torch.Tensor) -> torch.Tensor:
    """The quotient, rounded once.

    With a Python number torch multiplies by a rounded reciprocal instead.
    """
    like = by if isinstance(by, torch.Tensor) else number
    assert isinstance(like, torch.Tensor)

    def tensor(value: float | torch.Tensor) -> torch.Tensor:
        # filled on the device: a copy from the CPU would wait for it
        return value if isinstance(value, torch.Tensor) else like.new_full((), value)

    return tensor(number) / tensor(by)


def _single(value: float) -> float:
    """A Python number rounded to float32, as C computes it."""
    return float(torch.tensor(value, dtype=torch.float32))


#: Tensor type to weights in a block, bytes of a block, and what encodes [n, weights] as [n, bytes].
TYPES: dict[str, tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Q4_K": (_BLOCK, 144, _q4_k),
    "Q5_K": (_BLOCK, 176, _q5_k),
    "Q6_K": (_BLOCK, 210, _q6_k),
    "Q8_0": (32, 34, _q8_0),
}
