"""How far sampling is, in rows, validation rows and pairs: those that stand, and what this wave adds to them."""

import time

from loco.contracts.specs import PrepareSpec
from loco.stage.program import Emitter
from loco_worker.sampling.samples import Counts
from loco_worker.sampling.standing import Standing
from loco_worker.sampling.tries import Asked

#: What is shown while questions are asked: the end comes when the files are written.
_MOST_PERCENT = 99.9


class Progress:
    """Says after every answer how far it is.

    Args:
        spec: rows and validation rows that are wanted.
        pairs: those that are.
        emit: hears of it.
    """

    def __init__(self, spec: PrepareSpec, pairs: int, emit: Emitter) -> None:
        self._spec, self._pairs, self._emit = spec, pairs, emit
        self._wanted = spec.examples + spec.validation + pairs
        self._standing, self._paced, self._step = 0, False, 0
        #: Missing when the wave began; a validation row counts when it stands, not when it is solved.
        self._rows = self._validation = self._mixable = 0
        self._solved: set[int] = set()
        self._mixed: set[int] = set()
        #: Questions solved, and sometimes solved, since new answers were waited for.
        self._won = self._won_mixed = 0
        self._started: float | None = None

    def wave(self, standing: Standing) -> None:
        """A wave of new questions begins."""
        rows, held = len(standing.trained), len(standing.validation)
        self._standing, self._paced = rows + held + standing.pair_count, True
        self._rows = self._spec.examples - rows
        self._validation = self._spec.validation - held
        self._mixable = self._pairs - standing.pair_count
        self._solved, self._mixed = set(), set()

    def further(self, rows: int, standing: Standing) -> None:
        """Questions are asked again, whose pace is their own; so many rows there are."""
        self._standing = rows + len(standing.validation) + standing.pair_count
        self._paced = False

    def heard(self, asked: Asked, counts: Counts) -> None:
        """An answer came."""
        if self._started is None and counts.asked > counts.known:
            self._started = time.monotonic()
        step = self._standing
        if self._paced:
            self._count(asked)
            step += min(len(self._solved), self._rows) + min(len(self._mixed), self._mixable)
        self._step = min(max(self._step, step), self._wanted)
        left = self._left()
        self._emit.progress(
            message=f"asked {counts.asked}, right {counts.right}",
            step=self._step,
            total_steps=self._wanted,
            percent=min(round(100 * self._step / self._wanted, 1), _MOST_PERCENT),
            tokens_per_second=counts.tokens_per_second,
            eta_seconds=None if left is None else round(left, 1),
        )

    def _count(self, asked: Asked) -> None:
        number = asked.row.number
        new = self._started is not None
        if asked.solved and number not in self._solved:
            self._solved.add(number)
            self._won += new
        if asked.mixed and number not in self._mixed:
            self._mixed.add(number)
            self._won_mixed += new

    def _left(self) -> float | None:
        """Seconds, by this run's pace; none: it says nothing of what is missing."""
        if not self._paced or self._started is None:
            return None
        seconds, lefts = time.monotonic() - self._started, [0.0]
        if self._rows > 0:
            solved = max(0, self._rows + self._validation - len(self._solved))
            if solved and not self._won:
                return None
            lefts.append(solved and seconds / self._won * solved)
        elif self._validation > 0:
            return None  # nobody knows how many questions resemble no training row
        mixed = max(0, self._mixable - len(self._mixed))
        if mixed and not self._won_mixed:
            return None
        lefts.append(mixed and seconds / self._won_mixed * mixed)
        # a wave that has what it was begun for goes on all the same
        return max(lefts) or None
