"""One forward and backward pass over some rows, launched kernel by kernel or replayed from a record.

A pass over a thousand tokens of a 4B model is five thousand kernels of a few microseconds: launching
them takes longer than running them. A CUDA graph records them once for a size and launches them
together. Rows end to end come in every length, so sizes are rounded up to a multiple of `_TOKENS`
and the rest is filled with tokens that count nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from loco_trainer.data import batches
from loco_trainer.data.batches import Batch
from loco_trainer.data.rows import IGNORED, Row
from loco_trainer.engines.loaded import Loaded
from loco_trainer.loop.adapter_state import AdapterState

#: Sizes that are recorded are multiples of so many tokens: fewer mean less filler and more records.
_TOKENS = 128


class Passes:
    """Adds gradients to the adapter's, and what they are of to `figures`."""

    def __init__(self, loaded: Loaded, adapter: AdapterState, *, figures: int = 1) -> None:
        self._loaded = loaded
        self._adapter = adapter
        self._device = adapter.parameters.device
        #: Sums since `start_step`, divided by what the step has of what they count.
        self._figures = torch.zeros(figures, device=self._device)
        #: [1] 1 / that count.
        self._share = torch.ones(1, device=self._device)

    def start_step(self, count: int) -> None:
        """Begins an optimizer step whose loss is the mean over so many answer tokens (or pairs)."""
        self._figures.zero_()
        self._share.fill_(1.0 / count)

    @property
    def figures(self) -> torch.Tensor:
        """[figures] means over the step so far, the loss first; reading them waits."""
        return self._figures


class RowPasses(Passes):
    """Passes over rows; the one figure is the mean loss of the step's answer tokens, nats."""

    def lay_out(self, rows: Sequence[Row]) -> Batch:
        """The rows of one micro-batch as tensors in RAM; the GPU may be busy meanwhile."""
        return self._loaded.lay_out(list(rows))

    def run(self, batch: Batch) -> None:
        """Forward and backward over a batch that `lay_out` made."""
        self._compute(batch.to(self._device))

    def _compute(self, batch: Batch) -> None:
        with self._loaded.computing():
            losses = self._loaded.losses(batch)
        loss = losses.sum() * self._share
        self._adapter.scaler.scale(loss).backward()
        self._figures += loss.detach()


@dataclass
class _Record:
    """The static tensors of one size, and once it has been met twice, its recorded kernels."""

    batch: Batch
    graph: Any = None


class RecordedPasses(RowPasses):
    """Passes on a GPU that are recorded when a size is met a second time.

    The first time runs as usual: it compiles and loads the kernels, which a recording cannot.
    """

    def __init__(
        self, loaded: Loaded, adapter: AdapterState, *, micro_batch: int, longest: int
    ) -> None:
        super().__init__(loaded, adapter)
        self._rows = micro_batch
        self._longest = longest
        self._records: dict[tuple[int, ...], _Record] = {}
        self._pool: Any = None

    def lay_out(self, rows: Sequence[Row]) -> Batch:
        """The rows of one micro-batch, filled up to one of few sizes."""
        tokens = sum(len(row.input_ids) for row in rows)
        answers = sum(label != IGNORED for row in rows for label in row.labels[1:])
        # full rows are a plain batch, which attention likes
        if tokens == self._rows * self._longest:
            size, count, longest = tokens, len(rows), None
        else:
            size = math.ceil(tokens / _TOKENS) * _TOKENS
            count, longest = self._rows + 1, max(self._longest, _TOKENS)
        usual = min(size, math.ceil(0.75 * size / _TOKENS) * _TOKENS)
        sizes = batches.Sizes(size, usual if answers <= usual else size, count)
        batch = batches.end_to_end(rows, sizes=sizes)
        return replace(batch, longest=longest or batch.longest)

    def run(self, batch: Batch) -> None:
        """Forward and backward over a batch that `lay_out` made."""
        assert batch.starts is not None  # lay_out lays them end to end
        tensors = (batch.input_ids, batch.targets, batch.starts)
        sizes = (*(tensor.numel() for tensor in tensors), batch.longest)
        record = self._records.get(sizes)
        if record is None:
            moved = batch.to(self._device)
            self._records[sizes] = _Record(moved)
            self._compute(moved)
            return
        for name in ("input_ids", "position_ids", "places", "targets", "starts"):
            getattr(record.batch, name).copy_(getattr(batch, name), non_blocking=True)
        if record.graph is None:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._compute(record.batch)
            record.graph = graph
        record.graph.replay()


def choose_passes(
    loaded: Loaded, adapter: AdapterState, *, recorded: bool, micro_batch: int, longest: int
) -> RowPasses:
    """Passes as planned.

    Args:
        loaded: the model.
        adapter: gathers the gradients.
        recorded: with CUDA graphs; the rows must be laid end to end.
        micro_batch: most rows of a pass.
        longest: longest row, in tokens.
    """
    if recorded:
        return RecordedPasses(loaded, adapter, micro_batch=micro_batch, longest=longest)
    return RowPasses(loaded, adapter)
