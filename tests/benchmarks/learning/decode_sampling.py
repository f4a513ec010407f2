"""The next token of every row: greedy, or drawn, in a way that depends on the row alone.

The noise is a hash of (seed, position, token), so an answer is the same whoever else is in the batch.
"""

import torch
from torch import Tensor

#: Most candidates of a row; a request's top_k is no more.
MOST_CANDIDATES = 64
#: Neighbouring tokens of the vocabulary that are looked at together.
_GROUP = 128
_MASK = 0xFFFFFFFF


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its token. [rows, vocabulary] to two of [rows]."""
    value, token = logits.max(-1)
    return value, token


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Draws a token a row: temperature, then top-k, then top-p among those, as Ollama does.

    Drawn by the Gumbel-max trick: argmax of log-probability plus -log(-log(u)).

    Args:
        logits: [rows, vocabulary].
        temperature: [rows], float32; a row with 0 gets its most likely candidate.
        top_k: [rows], 1 … MOST_CANDIDATES.
        top_p: [rows], float32; the fewest candidates that reach it together stay.
        seeds: [rows], int64.
        positions: [rows], int64, of the token that is drawn.

    Returns:
        [rows], int64.
    """
    value, token = candidates(logits)
    rank = torch.arange(value.shape[1], device=value.device)
    warmth = torch.where(temperature > 0, temperature, 1.0)
    scaled = value.float() / warmth[:, None]
    scaled = scaled.masked_fill(rank >= top_k[:, None], float("-inf"))
    chance = scaled.softmax(-1)
    before = chance.cumsum(-1) - chance
    scaled = scaled.masked_fill((before >= top_p[:, None]) & (rank > 0), float("-inf"))
    noise = -torch.log(-torch.log(uniform(seeds, positions, token)))
    noise = torch.where((temperature > 0)[:, None], noise, 0.0)
    return token.gather(1, (scaled + noise).argmax(-1, keepdim=True))[:, 0]


def candidates(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The MOST_CANDIDATES largest logits of each row, the largest first, and their tokens.

    In two steps, exact: they lie in the groups with the largest maxima, as many groups as
    candidates. One pass over the vocabulary instead of a radix select's many.
    """
    rows, vocabulary = logits.shape
    count = min(MOST_CANDIDATES, vocabulary)
    if vocabulary <= _GROUP * count:
        return logits.topk(count)
    if vocabulary % _GROUP:
        logits = torch.nn.functional.pad(logits, (0, -vocabulary % _GROUP), value=float("-inf"))
    groups = logits.view(rows, -1, _GROUP)
    best = groups.amax(-1).topk(count).indices  # [rows, count]
    inside = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).view(rows, -1)
    value, place = inside.topk(count)
    token = best.gather(1, place // _GROUP) * _GROUP + place % _GROUP
    return value, token


def uniform(seeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Numbers in (0, 1) by a hash of (seed, position, token), float32.

    Args:
        seeds: [rows], int64.
        positions: [rows].
        tokens: [rows, candidates].
    """
    state = _mixed((seeds & _MASK) ^ _mixed((seeds >> 32 & _MASK) + 0x9E3779B9))
    state = _mixed(state + positions * 0x85EBCA6B & _MASK)
    bits = _mixed(_mixed(state[:, None] ^ _mixed(tokens + 0xC2B2AE35 & _MASK)))
    # 23 bits: with 24, half a step above the largest rounds to 1, whose noise is infinite
    return ((bits >> 9).float() + 0.5) / (1 << 23)


def _mixed(x: Tensor) -> Tensor:
    """32 bits mixed into 32 others, in int64: Wellons' `lowbias32`."""
    x = x & _MASK
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & _MASK
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & _MASK
    return x ^ (x >> 16)
