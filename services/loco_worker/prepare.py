"""Stage prepare: writes the training data and keeps the eval questions out of it.

    python -m loco_worker.prepare --spec adapters/math/runs/JOB/prepare/a1/spec.json --out /tmp/x

Writes `training_data.jsonl` and, when the spec asks for generated held-out problems,
`held_out.jsonl`. The same spec and files give the same bytes.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from loco.artifacts import atomic_write
from loco.datasets import dataset_path
from loco.errors import DataError
from loco.program import Emitter, main
from loco.results import Dropped, Overlap, PrepareResult
from loco.specs import HeldOut, Inputs, PrepareSpec
from loco.stages import Stage
from loco_worker.eval_items import EvalItem, load_eval_items
from loco_worker.overlap import OverlapIndex, normalise
from loco_worker.rows import Empty, Malformed, Row
from loco_worker.sources import Record, Records, held_out_problems, open_source

TRAINING_DATA = "training_data.jsonl"
HELD_OUT = "held_out.jsonl"

#: A generator that gave so many unusable problems in a row has no new ones left.
FRUITLESS = 2000
#: Overlapping rows listed in the result; all are counted.
OVERLAPS_LISTED = 1000


def run(spec: PrepareSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> PrepareResult:
    """Reads, filters, samples and writes rows.

    Raises:
        SourceUnreachable, DataError, InvalidRequest: see `loco_worker.sources.open_source`;
            DataError also when no row is left.
    """
    benchmark = load_eval_items(
        dataset_path(spec.benchmark, inputs.adapter_dir, inputs.dataset_dirs)
    )
    index = OverlapIndex(spec.overlap_ngram)
    for item in benchmark:
        index.add(f"benchmark/{item.id}", item.question)
    held_out = _held_out(spec.held_out, index, emit) if spec.held_out else []

    emit.progress(message=f"opening source {spec.source.kind}", percent=0, last=True)
    records = open_source(spec.source, inputs, spec.seed)
    sieve = Sieve(index)
    rows = _rows(records, spec, sieve, emit)
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
    files = {TRAINING_DATA: TRAINING_DATA}
    _write(out_dir / TRAINING_DATA, ({"conversations": row.conversations} for row in rows))
    if spec.held_out:
        files[HELD_OUT] = HELD_OUT
        _write(out_dir / HELD_OUT, (item.model_dump() for item in held_out))
    emit.log(
        f"{len(rows)} rows of {records.description}; read {sieve.read}, dropped {sieve.in_words()}; "
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
        held_out=len(held_out),
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


def _rows(records: Records, spec: PrepareSpec, sieve: Sieve, emit: Emitter) -> list[Row]:
    """`spec.examples` rows: the first ones of a generator, a seeded sample of anything else."""
    kept: list[Row] = []
    fruitless = 0
    for record in records.records:
        row = sieve.accept(record)
        fruitless = fruitless + 1 if row is None else 0
        if row is not None:
            kept.append(row)
        if records.size is None and (len(kept) == spec.examples or fruitless == FRUITLESS):
            break
        if sieve.read % 100 == 0:
            emit.check_stop()
            done = len(kept) / spec.examples if records.size is None else sieve.read / records.size
            emit.progress(
                step=len(kept),
                total_steps=spec.examples,
                percent=round(100 * done, 1),
                message=f"{sieve.read} rows read, {len(kept)} usable",
            )
    if records.size is None or len(kept) <= spec.examples:
        return kept
    return Random(spec.seed).sample(kept, spec.examples)  # noqa: S311 (not for secrets)


def _held_out(held_out: HeldOut, index: OverlapIndex, emit: Emitter) -> list[EvalItem]:
    """Generated problems, none twice and none overlapping the index, which they then join."""
    emit.progress(message=f"generating {held_out.count} held-out problems", last=True)
    chosen: list[tuple[EvalItem, str | None]] = []
    seen: set[str] = set()
    fruitless = 0
    for item, problem in held_out_problems(held_out.source, held_out.seed):
        question = normalise(item.question)
        if question in seen or problem in seen or index.match(item.question):
            fruitless += 1
            if fruitless == FRUITLESS:
                raise DataError(
                    f"Source {held_out.source.kind} gives only {len(chosen)} different held-out "
                    f"problems, {held_out.count} were asked for.",
                    param="prepare.held_out.count",
                    hint=f"Ask for {len(chosen)} or fewer.",
                )
            continue
        fruitless = 0
        seen |= {question} | ({problem} if problem else set())
        chosen.append((item.model_copy(update={"id": f"h{len(chosen) + 1:04}"}), problem))
        if len(chosen) == held_out.count:
            break
        emit.check_stop()
    for item, problem in chosen:
        index.add(f"held_out/{item.id}", item.question, problem)
    return [item for item, _ in chosen]


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(Stage.PREPARE, run))
