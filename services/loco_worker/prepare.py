"""Stage prepare: writes the training data and keeps the eval questions out of it.

    python -m loco_worker.prepare --spec adapters/math/runs/JOB/prepare/a1/spec.json --out /tmp/x

Writes `training_data.jsonl`, `validation_data.jsonl` (rows of the same source to measure the loss
on) and the eval sets it kept the rows apart from, `eval_sets/NAME.jsonl`. The same spec and files
give the same bytes.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from loco.contracts.errors import DataError
from loco.contracts.files import atomic_write
from loco.contracts.results import Dropped, Overlap, PrepareResult
from loco.contracts.sources import SelfSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.contracts.stages import Stage
from loco.grading.eval_items import written
from loco.grading.graders import check_gradable
from loco.stage.program import Emitter, main
from loco_worker.sources.eval_sets import read_sets
from loco_worker.sources.overlap import OverlapIndex, normalise
from loco_worker.sources.rows import Empty, Malformed, Row
from loco_worker.sources.sources import Record, Records, open_source

TRAINING_DATA = "training_data.jsonl"
VALIDATION_DATA = "validation_data.jsonl"
EVAL_SETS = "eval_sets"

#: A generator that gave so many unusable problems in a row has no new ones left; a source of which
#: so many rows resemble the training rows has nothing else to validate on.
FRUITLESS = 2000
#: Overlapping rows listed in the result; all are counted.
OVERLAPS_LISTED = 1000


def run(spec: PrepareSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> PrepareResult:
    """Reads, filters, samples and writes rows.

    Raises:
        SourceUnreachable, DataError, InvalidRequest: see `loco_worker.sources.sources.open_source`;
            DataError also when no row is left.
        SandboxUnavailable: a problem asks for code, which eval could not grade here: better known
            before hours of training.
    """
    index = OverlapIndex(spec.overlap_ngram)
    eval_sets = read_sets(spec.eval_sets, inputs, index, emit)
    check_gradable(item for items in eval_sets.values() for item in items)

    emit.progress(message=f"opening source {spec.source.kind}", percent=0, last=True)
    assert not isinstance(spec.source, SelfSource), "not written yet"
    records = open_source(spec.source, inputs, spec.seed)
    sieve = Sieve(index)
    rows, rest = _divided(_usable(records, spec, sieve, emit), records.size, spec)
    if not rows:
        raise DataError(
            f"No row of {records.description} is usable: read {sieve.read}, "
            f"dropped {sieve.in_words()}.",
            param="prepare.source",
            hint="Rows need a question, and an answer that ends in `#### N` or a number; or chat "
            "turns. Rows that overlap the eval set are always dropped.",
        )
    if len(rows) < spec.examples:
        emit.log(f"{len(rows)} rows instead of {spec.examples}: the source has no more usable ones")
    validation = _apart(rest, rows, spec, emit)
    if len(validation) < spec.validation:
        emit.log(
            f"{len(validation)} validation rows instead of {spec.validation}: the source has no "
            "more rows that are usable and overlap no training row"
        )
    files = {TRAINING_DATA: TRAINING_DATA}
    _write(out_dir / TRAINING_DATA, ({"conversations": row.conversations} for row in rows))
    if validation:
        files[VALIDATION_DATA] = VALIDATION_DATA
        _write(
            out_dir / VALIDATION_DATA, ({"conversations": row.conversations} for row in validation)
        )
    for name, items in eval_sets.items():
        file = f"{EVAL_SETS}/{name}.jsonl"
        files[file] = file
        (out_dir / EVAL_SETS).mkdir(exist_ok=True)
        _write(out_dir / file, (written(item) for item in items))
    emit.log(
        f"{len(rows)} rows of {records.description}, {len(validation)} for validation; read {sieve.read}, dropped {sieve.in_words()}; "
        f"compared with {index.items} eval items"
    )
    for overlap in sieve.overlaps[:10]:
        emit.log(f"row {overlap.row} overlaps {overlap.eval_item} ({overlap.rule})")
    emit.progress(message=f"{len(rows)} rows", percent=100, last=True)
    return PrepareResult(
        seconds=0,
        files=files,
        source=records.description,
        read=sieve.read,
        kept=len(rows),
        dropped=Dropped(**sieve.dropped),
        overlaps=tuple(sieve.overlaps[:OVERLAPS_LISTED]),
        eval_items_checked=index.items,
        eval_sets={name: len(items) for name, items in eval_sets.items()},
        eval_sources=spec.eval_sets,
        validation=len(validation),
    )


class Sieve:
    """Lets through usable rows that are new and overlap no eval item; counts the others."""

    def __init__(self, index: OverlapIndex) -> None:
        self._index = index
        self._seen: set[str] = set()
        self.read = 0
        self.dropped: Counter[str] = Counter()
        self.overlaps: list[Overlap] = []

    def accept(self, record: Record) -> Row | None:
        """The record's row, or None when it is dropped."""
        self.read += 1
        try:
            row = record()
        except Malformed:
            self.dropped["malformed"] += 1
            return None
        except Empty:
            self.dropped["empty"] += 1
            return None
        question = normalise(row.question)
        if question in self._seen:
            self.dropped["duplicate"] += 1
            return None
        match = self._index.match(row.question, row.problem)
        if match is not None:
            self.dropped["overlap"] += 1
            self.overlaps.append(Overlap(row=row.number, eval_item=match.item, rule=match.rule))
            return None
        self._seen.add(question)
        return row

    def in_words(self) -> str:
        """The counts for people."""
        return ", ".join(f"{self.dropped[reason]} {reason}" for reason in Dropped.model_fields)


def _usable(records: Records, spec: PrepareSpec, sieve: Sieve, emit: Emitter) -> Iterator[Row]:
    """The usable rows of a source, in its order; a generator's end when it has no new ones."""
    usable = fruitless = 0
    for record in records.records:
        row = sieve.accept(record)
        fruitless = fruitless + 1 if row is None else 0
        if row is not None:
            usable += 1
            yield row
        if records.size is None and fruitless == FRUITLESS:
            return
        if sieve.read % 100 == 0:
            emit.check_stop()
            wanted = spec.examples + spec.validation
            done = usable / wanted if records.size is None else sieve.read / records.size
            emit.progress(
                step=min(usable, spec.examples),
                total_steps=spec.examples,
                percent=min(100.0, round(100 * done, 1)),
                message=f"{sieve.read} rows read, {usable} usable",
            )


def _divided(
    usable: Iterator[Row], size: int | None, spec: PrepareSpec
) -> tuple[list[Row], Iterator[Row]]:
    """`spec.examples` rows to train on, and the others in the order to take them in.

    The training rows are the first ones of a generator, and a seeded sample of anything else.
    """
    if size is None:
        return list(islice(usable, spec.examples)), usable
    rows = list(usable)
    if len(rows) <= spec.examples:
        return rows, iter(())
    rng = Random(spec.seed)  # noqa: S311 (not for secrets)
    kept = rng.sample(rows, spec.examples)
    numbers = {row.number for row in kept}
    rest = [row for row in rows if row.number not in numbers]
    rng.shuffle(rest)  # after the sample, which thus stays the same whatever is validated on
    return kept, iter(rest)


def _apart(rest: Iterator[Row], trained: list[Row], spec: PrepareSpec, emit: Emitter) -> list[Row]:
    """The first `spec.validation` rows that no training row overlaps, by the rules of eval items."""
    chosen: list[Row] = []
    refused, batch = 0, spec.validation
    while len(chosen) < spec.validation and refused < FRUITLESS:
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


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(Stage.PREPARE, run))
