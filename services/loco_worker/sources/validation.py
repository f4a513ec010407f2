"""The rows to measure the loss on: of the same source as the training rows, but apart from them."""

from collections.abc import Iterator, Sequence
from itertools import islice

from loco.contracts.specs import PrepareSpec
from loco.datasets.overlap import OverlapIndex
from loco.stage.program import Emitter
from loco_worker.sources import sieve
from loco_worker.sources.rows import Row


def apart(
    rest: Iterator[Row], trained: Sequence[Row], spec: PrepareSpec, emit: Emitter
) -> list[Row]:
    """The first `spec.validation` rows that no training row overlaps, by the rules of eval items."""
    chosen: list[Row] = []
    refused, batch = 0, spec.validation
    while len(chosen) < spec.validation and refused < sieve.FRUITLESS:
        candidates = {str(row.number): row for row in islice(rest, batch)}
        if not candidates:
            break
        index = OverlapIndex(spec.overlap_ngram)
        for number, row in candidates.items():
            index.add(number, row.question, row.problem)
        met: set[str] = set()
        for row in trained:
            met.update(match.item for match in index.matches(row.question, row.problem))
        chosen += [row for number, row in candidates.items() if number not in met]
        refused += len(met)
        batch *= 2  # every batch is one pass over the training rows: few passes, however many fail
        emit.check_stop()
    return chosen[: spec.validation]
