"""Which questions are asked, and in which order: the same for the same seed."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from random import Random

from loco.contracts.specs import PrepareSpec
from loco.grading.graders import check_gradable
from loco.stage.program import Emitter
from loco_worker.sampling.tries import Asked
from loco_worker.sources.held_back import held_back
from loco_worker.sources.rows import Row
from loco_worker.sources.sieve import Sieve
from loco_worker.sources.sources import Records


class Questions:
    """The usable questions of a source, handed out in order.

    Args:
        records: of a source opened for its questions.
        sieve: counts what is left out.
        spec: examples and seed.
        emit: hears of stop requests.

    Raises:
        SandboxUnavailable: answers would have to be run as code, which this machine can't do safely.
    """

    def __init__(self, records: Records, sieve: Sieve, spec: PrepareSpec, emit: Emitter) -> None:
        self.description = records.description
        #: Whether there is no end to them but the one in sight when nothing new comes any more.
        self.generated = records.size is None

        def every(usable: int) -> None:
            emit.check_stop()
            if records.size is not None:
                emit.progress(message=f"{sieve.read} questions read, {usable} usable", percent=0)

        usable, self.held = held_back(sieve.usable(records, every), spec, sieve, emit)
        self._rest: Iterator[Row] = usable if self.generated else _ordered(list(usable), spec)

    def take(self, count: int) -> list[Asked]:
        """The next questions; fewer where the source has no more."""
        return [Asked(row) for row in islice(self._rest, max(0, count))]


def _ordered(rows: list[Row], spec: PrepareSpec) -> Iterator[Row]:
    """First those that the source's own answers would be trained on, with this seed and number.

    The others follow in an order that does not depend on how many rows are wanted. Which are first does:
    `Random.sample` of 400 begins with that of 200 where it draws both in the same way, which of 1,046 to
    4,117 usable rows it does not. A second job with more rows takes over the answers of those it meets again.
    """
    check_gradable(row.item for row in rows if row.item)
    if len(rows) <= spec.examples:
        yield from rows
        return
    first = Random(spec.seed).sample(rows, spec.examples)  # noqa: S311 (not for secrets)
    yield from first
    numbers = {row.number for row in first}
    rest = [row for row in rows if row.number not in numbers]
    yield from sorted(rest, key=lambda row: _place(spec.seed, row.question))


def _place(seed: int, question: str) -> bytes:
    return hashlib.sha256(f"{seed} {question}".encode()).digest()
