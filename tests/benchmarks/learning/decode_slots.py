"""The slots of a decoder: what the GPU knows of every running answer, and the steps that go on with them.

All state lives on the device and a step changes it in place, so a step is one CUDA graph, recorded
once for each number of rows. The host looks at a copy that is made between steps, when it is done.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import decode_sampling
import torch
from decode_model import Model
from torch import Tensor

#: Numbers of rows a step is recorded for, up to the number of slots.
_SIZES = (8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512)
#: Spans recorded for ops that need one.
_SPANS = (256, 384, 512, 768, 1024, 1536, 2048)
#: Prompts are filled up to a multiple of this many tokens.
WIDTH = 64
#: Most tokens of prompts computed at once.
_PROMPT_TOKENS = 16_384


@dataclass(frozen=True)
class Start:
    """What an answer starts with."""

    prompt: Sequence[int]
    #: Most tokens of prompt and answer together.
    limit: int
    temperature: float
    top_k: int
    top_p: float
    #: Any 64 bits, as int64.
    seed: int


@dataclass(frozen=True)
class Look:
    """The slots after some block of steps; read it when `ready`."""

    #: Counts up with each block.
    number: int
    ended: Tensor
    broken: Tensor
    #: Place of the last token of each slot.
    lengths: Tensor
    #: [slots, length]: tokens of the answers, each at its place in its sequence.
    made: Tensor
    event: Any

    def wait(self) -> None:
        """Until the device has written it."""
        if self.event is not None:
            self.event.synchronize()


class Slots:
    """Runs answers of one model, as many at once as it has slots.

    Args:
        model: on its device.
        count: slots.
        ends: tokens that end an answer.
    """

    def __init__(self, model: Model, count: int, ends: Sequence[int]) -> None:
        self.model, self.count = model, count
        device = model.device
        self._on_gpu = device.type == "cuda"
        # one more, which takes what the unused rows of a step write
        whole = count + 1

        def full(dtype: torch.dtype, value: float = 0) -> Tensor:
            return torch.full((whole,), value, dtype=dtype, device=device)

        self._cache = model.cache(whole)
        self._token = full(torch.int64)
        self._length = full(torch.int64)
        self._limit = full(torch.int64)
        self._ended = full(torch.bool, True)
        self._broken = full(torch.bool, False)
        self._temperature = full(torch.float32)
        self._top_k = full(torch.int64, 1)
        self._top_p = full(torch.float32, 1)
        self._seed = full(torch.int64)
        self._made = torch.zeros(whole, model.length, dtype=torch.int32, device=device)
        self.ends = frozenset(ends)
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
        self._rows = full(torch.int64, count)
        self._graphs: dict[tuple[int, bool, int | None], torch.cuda.CUDAGraph] = {}
        self._pool: Any = None
        self._sizes = [n for n in _SIZES if n < count] + [count]
        self._buffers: collections.deque[tuple[Tensor, ...]] = collections.deque()
        self._number = 0

    @torch.inference_mode()
    def record(self) -> None:
        """Records every step there may be, on the current stream; nothing without a GPU."""
        if self._on_gpu and not self.model.ops.needs_span:
            for rows in reversed(self._sizes):
                for sampled in (False, True):
                    self._graph(rows, sampled, None)

    @torch.inference_mode()
    def begin(self, starts: Sequence[tuple[int, Start]]) -> None:
        """Computes prompts into their slots and the first token of each answer.

        Args:
            starts: slot and start of each; a prompt is shorter than its limit.
        """
        self._set(starts)
        ordered = sorted(starts, key=lambda s: len(s[1].prompt))
        chunk: list[tuple[int, Start]] = []
        for slot, start in ordered:
            width = _padded(len(start.prompt))
            wider = chunk and width > _padded(len(chunk[-1][1].prompt)) and len(chunk) >= 16
            if chunk and (wider or width * (len(chunk) + 1) > _PROMPT_TOKENS):
                self._prompts(chunk)
                chunk = []
            chunk.append((slot, start))
        if chunk:
            self._prompts(chunk)

    @torch.inference_mode()
    def advance(self, rows: Sequence[int], steps: int, *, sampled: bool, longest: int) -> Look:
        """Steps on with some slots; ended ones stay as they are.

        Args:
            rows: the slots.
            steps: how many tokens each gets.
            sampled: whether any of them has a temperature.
            longest: no slot is past this place before the first step.
        """
        size = next(n for n in self._sizes if n >= len(rows))
        self._rows.copy_(self._sent([*rows, *[self.count] * (self.count + 1 - len(rows))]))
        for step in range(steps):
            span = self._span(longest + step + 1)
            if self._on_gpu:
                self._graph(size, sampled, span).replay()
            else:
                self._step(len(rows), sampled, span)
        return self._look()

    def _step(self, rows: int, sampled: bool, span: int | None) -> None:
        slots = self._rows[:rows]
        logits = self.model.step(self._token[slots], slots, self._length[slots], self._cache, span)
        self._take(slots, logits, sampled)

    def _take(self, slots: Tensor, logits: Tensor, sampled: bool) -> None:
        """Appends the next token of each slot that has not ended."""
        ended, length = self._ended[slots], self._length[slots]
        position = length + 1
        best, token = decode_sampling.greedy(logits)
        if sampled:
            asked = (s[slots] for s in (self._temperature, self._top_k, self._top_p, self._seed))
            drawn = decode_sampling.sample(logits, *asked, position)
            token = torch.where(self._temperature[slots] > 0, drawn, token)
        broken = torch.isnan(best)
        token = torch.where(broken, 0, token)  # an index out of the vocabulary stops the device
        place = torch.where(ended, length, position)
        token = torch.where(ended, self._token[slots], token)
        last = (token[:, None] == self._ends).any(-1)
        self._made[slots, place] = token.to(torch.int32)
        self._token[slots] = token
        self._length[slots] = place
        self._broken[slots] = self._broken[slots] | (broken & ~ended)
        self._ended[slots] = ended | last | broken | (place + 1 >= self._limit[slots])

    def _graph(self, rows: int, sampled: bool, span: int | None) -> torch.cuda.CUDAGraph:
        key = (rows, sampled, span)
        if key not in self._graphs:
            before = self._rows.clone()
            self._rows.fill_(self.count)  # nobody's slot
            stream = torch.cuda.current_stream()
            for _ in range(2):  # compiles kernels and fills cuBLAS's workspace
                self._step(rows, sampled, span)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                self._step(rows, sampled, span)
            self._pool = self._pool or graph.pool()
            self._graphs[key] = graph
            self._rows.copy_(before)
        return self._graphs[key]

    def _set(self, starts: Sequence[tuple[int, Start]]) -> None:
        slots = self._sent([slot for slot, _ in starts])
        told = [start for _, start in starts]
        for state, values in (
            (self._length, [len(s.prompt) - 1 for s in told]),
            (self._limit, [s.limit for s in told]),
            (self._top_k, [s.top_k for s in told]),
            (self._seed, [s.seed for s in told]),
        ):
            state[slots] = self._sent(values)
        for state, decimals in (
            (self._temperature, [s.temperature for s in told]),
            (self._top_p, [s.top_p for s in told]),
        ):
            state[slots] = self._sent(decimals, torch.float32)
        self._ended[slots] = torch.zeros_like(slots, dtype=torch.bool)
        self._broken[slots] = torch.zeros_like(slots, dtype=torch.bool)

    def _prompts(self, chunk: Sequence[tuple[int, Start]]) -> None:
        width = _padded(max(len(start.prompt) for _, start in chunk))
        tokens = [[*s.prompt, *[0] * (width - len(s.prompt))] for _, s in chunk]
        slots = self._sent([slot for slot, _ in chunk])
        lasts = self._sent([len(start.prompt) - 1 for _, start in chunk])
        logits = self.model.prompts(self._sent(tokens), lasts, slots, self._cache)
        self._take(slots, logits, any(start.temperature > 0 for _, start in chunk))

    def _look(self) -> Look:
        state = (self._ended, self._broken, self._length, self._made)
        if len(self._buffers) < 3:
            held = tuple(
                torch.empty(s.shape, dtype=s.dtype, pin_memory=self._on_gpu) for s in state
            )
        else:  # the oldest of three: whoever looks is one behind at most
            held = self._buffers.popleft()
        for target, source in zip(held, state, strict=True):
            target.copy_(source, non_blocking=self._on_gpu)
        self._buffers.append(held)
        event = None
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record()
        self._number += 1
        return Look(self._number, *held, event)

    def _span(self, needed: int) -> int | None:
        if not self.model.ops.needs_span:
            return None
        return next((s for s in _SPANS if needed <= s < self.model.length), self.model.length)

    def _sent(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        """On the device, without waiting for it."""
        tensor = torch.tensor(values, dtype=dtype, pin_memory=self._on_gpu)
        return tensor.to(self.model.device, non_blocking=True)


def _padded(length: int) -> int:
    return -(-length // WIDTH) * WIDTH
