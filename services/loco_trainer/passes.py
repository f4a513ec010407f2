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

from loco_trainer import batches
from loco_trainer.adapter_state import AdapterState
from loco_trainer.batches import Batch
from loco_trainer.engines import Loaded
from loco_trainer.rows import IGNORED, Row

#: Sizes that are recorded are multiples of so many tokens: fewer mean less filler and more records.
_TOKENS = 128


class Passes:
    """Adds the gradient of some rows to the adapter's, and their loss to `loss`."""

    def __init__(self, loaded: Loaded, adapter: AdapterState) -> None:
        self._loaded = loaded
        self._adapter = adapter
        self._device = adapter.parameters.device
        #: [1] sum of the losses since the last `take_loss`, each divided by its step's answers.
        self._loss = torch.zeros(1, device=self._device)
        #: [1] 1 / answer tokens of the step.
        self._share = torch.ones(1, device=self._device)

    def start_step(self, answers: int) -> None:
        """Begins an optimizer step of so many answer tokens."""
        self._loss.zero_()
        self._share.fill_(1.0 / answers)

    def run(self, rows: Sequence[Row]) -> None:
        """Forward and backward over the rows of one micro-batch."""
        self._compute(self._loaded.lay_out(list(rows)).to(self._device))

    @property
    def loss(self) -> torch.Tensor:
        """[1] mean loss of the step's answer tokens so far, nats; reading it waits."""
        return self._loss

    def _compute(self, batch: Batch) -> None:
        with self._loaded.computing():
            losses = self._loaded.losses(batch)
        loss = losses.sum() * self._share
        self._adapter.scaler.scale(loss).backward()
        self._loss += loss.detach()


@dataclass
class _Record:
    """The static tensors of one size, and once it has been met twice, its recorded kernels."""

    batch: Batch
    graph: Any = None


class RecordedPasses(Passes):
    """Passes on a GPU that are recorded when a size is met a second time.

    The first time runs as usual: it compiles and loads the kernels, which a recording cannot.
    """

    def __init__(
        self, loaded: Loaded, adapter: AdapterState, *, micro_batch: int, longest: int
    ) -> None:
        super().__init__(loaded, adapter)
        self._rows = micro_batch
        self._longest = max(longest, _TOKENS)
        self._records: dict[tuple[int, int], _Record] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, rows: Sequence[Row]) -> None:
        """Forward and backward over the rows of one micro-batch."""
        sizes = self._sizes(rows)
        filled = batches.end_to_end(rows, sizes=(*sizes, self._rows))
        record = self._records.get(sizes)
        if record is None:
            batch = replace(filled.to(self._device), longest=self._longest)
            self._records[sizes] = _Record(batch)
            self._compute(batch)
            return
        for name in ("input_ids", "position_ids", "places", "targets", "starts"):
            getattr(record.batch, name).copy_(getattr(filled, name), non_blocking=True)
        if record.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._compute(record.batch)
            record.graph = graph
        record.graph.replay()

    def _sizes(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Tokens and answers to fill up to: of few different values, so that few are recorded."""
        tokens = sum(len(row.input_ids) for row in rows)
        answers = sum(label != IGNORED for row in rows for label in row.labels[1:])
        size = math.ceil(tokens / _TOKENS) * _TOKENS
        usual = math.ceil(0.75 * size / _TOKENS) * _TOKENS
        return size, usual if answers <= usual else size


def passes(
    loaded: Loaded, adapter: AdapterState, *, recorded: bool, micro_batch: int, longest: int
) -> Passes:
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
    return Passes(loaded, adapter)
