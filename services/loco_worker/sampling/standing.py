"""What the answers so far give: training rows, validation rows, pairs, and how many questions to ask next."""

from collections.abc import Iterable, Sequence
from typing import Any

from loco.contracts.sources import SelfSource
from loco.contracts.specs import PrepareSpec
from loco.datasets.overlap import OverlapIndex
from loco.stage.program import Emitter
from loco_worker.sampling.pairs import pair_count, pairs_of
from loco_worker.sampling.tries import Asked
from loco_worker.sampling.waves import fruitless, wave_size
from loco_worker.sources.validation import apart


class Standing:
    """Grows wave by wave; what once stands as a row stays, so each question is judged once.

    Args:
        spec: what is wanted.
        source: its source.
        emit: hears of stop requests.
    """

    def __init__(self, spec: PrepareSpec, source: SelfSource, emit: Emitter) -> None:
        self._spec, self._source, self._emit = spec, source, emit
        #: One row a question, in the order of the questions.
        self.trained: list[Asked] = []
        self.validation: list[Asked] = []
        self._paired: list[Asked] = []
        self._held = OverlapIndex(spec.overlap_ngram)
        #: Questions so far, and the places from 1 of the newest that gave a row, a validation row, a pair.
        self._asked = self._trained_at = self._held_at = self._paired_at = 0
        #: Pairs there are, no more than wanted.
        self.pair_count = 0

    def add(self, wave: Sequence[Asked]) -> None:
        """Takes in questions that were asked, in order."""
        places = {id(asked): self._asked + n for n, asked in enumerate(wave, start=1)}
        self._asked += len(wave)
        solved = [asked for asked in wave if asked.solved]
        split = self._spec.examples - len(self.trained)
        rows, others = solved[:split], solved[split:]
        if rows:
            self.trained += rows
            self._trained_at = places[id(rows[-1])]
        missing = self._spec.validation - len(self.validation)
        if others and missing > 0:
            trained = [asked.row for asked in self.trained]
            chosen = apart(iter([asked.row for asked in others]), trained, self._spec, self._emit)
            numbers = {row.number for row in chosen[:missing]}
            held = [asked for asked in others if asked.row.number in numbers]
            if held:
                self._held_at = places[id(held[-1])]
            self.hold_out(held)
        able = [asked for asked in solved if self._pairs_with(asked)] if self._source.pairs else []
        paired = _apart_from(self._held, able)
        if paired:
            self._paired += paired
            self._paired_at = places[id(paired[-1])]
        self._count_pairs()

    def hold_out(self, chosen: Sequence[Asked]) -> None:
        """Takes validation rows: what the loss is measured on must not be trained on in pairs either."""
        fresh = OverlapIndex(self._spec.overlap_ngram)
        for asked in chosen:
            for index in (fresh, self._held):
                index.add(str(asked.row.number), asked.row.question, asked.row.problem)
        self.validation += chosen
        if chosen:
            self._paired = _apart_from(fresh, self._paired)
        self._count_pairs()

    def wave(self) -> int:
        """The questions to ask next; 0: all is there, or what is missing is not to be had.

        Rows, validation rows and pairs are each given up once the newest questions brought none.
        """
        asked = self._asked
        rows = self._spec.examples - len(self.trained)
        validation = self._spec.validation - len(self.validation)
        if rows > 0:
            sizes = [wave_size(rows + validation, len(self.trained), asked)]
            lasts = [self._trained_at]
        else:
            # only what came after the last training row could become one
            since = asked - self._trained_at
            sizes = [wave_size(validation, len(self.validation), since)]
            lasts = [max(self._trained_at, self._held_at)]
        if asked:
            sizes.append(wave_size(self._source.pairs - self.pair_count, self.pair_count, asked))
            lasts.append(self._paired_at)
        return max(
            0 if fruitless(asked, last) else size for size, last in zip(sizes, lasts, strict=True)
        )

    def pairs(self) -> list[dict[str, Any]]:
        """Lines of preference_data.jsonl."""
        source = self._source
        instruction = source.instruction if source.train_instruction else None
        return pairs_of(self._paired, source.pairs, source.per_question, instruction)

    def _pairs_with(self, asked: Asked) -> int:
        return pair_count(asked, self._source.per_question)

    def _count_pairs(self) -> None:
        self.pair_count = min(self._source.pairs, sum(map(self._pairs_with, self._paired)))


def _apart_from(held: OverlapIndex, questions: Iterable[Asked]) -> list[Asked]:
    return [q for q in questions if held.match(q.row.question, q.row.problem) is None]
