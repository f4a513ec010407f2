"""Which records of a source become rows: usable ones, new ones, none that overlaps an eval item."""

from collections import Counter
from collections.abc import Callable, Iterator

from loco.contracts.results import Dropped, Overlap
from loco.datasets.overlap import OverlapIndex, normalise
from loco_worker.sources.rows import Empty, Malformed, Row
from loco_worker.sources.sources import Record, Records

#: A generator that gave so many unusable problems in a row has no new ones left; a source of which
#: so many rows resemble the training rows has nothing else to validate on.
FRUITLESS = 2000

#: Malformed rows that the log names.
NAMED = 10


class Sieve:
    """Lets through usable rows that are new and overlap no eval item; counts the others."""

    def __init__(self, index: OverlapIndex) -> None:
        self.index = index
        self._seen: set[str] = set()
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.overlaps: list[Overlap] = []
        #: The first malformed rows, in words.
        self.malformed: list[str] = []

    def accept(self, record: Record) -> Row | None:
        """The record's row, or None when it is dropped."""
        self.read += 1
        try:
            row = record()
        except Malformed as error:
            self.dropped["malformed"] += 1
            if len(self.malformed) < NAMED:
                self.malformed.append(f"{error}"[:300].encode(errors="backslashreplace").decode())
            return None
        except Empty:
            self.dropped["empty"] += 1
            return None
        question = normalise(row.question)
        if question in self._seen:
            self.dropped["duplicate"] += 1
            return None
        match = self.index.match(row.question, row.problem)
        if match is not None:
            self.dropped["overlap"] += 1
            self.overlaps.append(Overlap(row=row.number, eval_item=match.item, rule=match.rule))
            return None
        self._seen.add(question)
        return row

    def leave_out(self, row: Row) -> None:
        """Drops a row that was let through before a problem joined the index which it overlaps."""
        match = self.index.match(row.question, row.problem)
        if match is not None:
            self.dropped["overlap"] += 1
            self.overlaps.append(Overlap(row=row.number, eval_item=match.item, rule=match.rule))

    @property
    def eval_items(self) -> int:
        """Eval items that rows are compared with."""
        return self.index.items

    def usable(self, records: Records, every: Callable[[int], None]) -> Iterator[Row]:
        """The usable rows of a source, in its order; a generator ends when it has no new ones.

        Args:
            records: the source.
            every: called after every hundredth record, with the number of usable ones so far.
        """
        usable = fruitless = 0
        for record in records.records:
            row = self.accept(record)
            fruitless = fruitless + 1 if row is None else 0
            if row is not None:
                usable += 1
                yield row
            if records.size is None and fruitless == FRUITLESS:
                return
            if self.read % 100 == 0:
                every(usable)

    def in_words(self) -> str:
        """The counts for people."""
        return ", ".join(f"{self.dropped[reason]} {reason}" for reason in Dropped.model_fields)
