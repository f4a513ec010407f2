"""Stage prepare: writes the training data and keeps the eval questions out of it.

    python -m loco_worker.prepare --spec adapters/math/runs/JOB/prepare/a1/spec.json --out /tmp/x

Writes `training_data.jsonl`, `validation_data.jsonl` (rows to measure the loss on, of the same source
unless another is named) and the eval sets it kept the rows apart from, `eval_sets/NAME.jsonl`; one of source `split` is of
rows held back. The same spec and files give the same bytes. Source `self` asks the base model, and also writes `samples.jsonl` (every answer)
and, where asked for, `preference_data.jsonl`: the same where the server gives the same answers. Rows
that are pairs become training rows with the chosen answer, and `preference_data.jsonl`.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from loco.contracts.errors import DataError
from loco.contracts.files import atomic_write
from loco.contracts.results import Dropped, PrepareResult
from loco.contracts.sources import GivenSource, SelfSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.contracts.stages import Stage
from loco.datasets.overlap import OverlapIndex
from loco.grading.eval_items import EvalItem, written
from loco.grading.graders import check_gradable
from loco.stage.program import Emitter, main
from loco_worker.sampling.base_answers import OwnAnswers, own_answers
from loco_worker.sources.eval_sets import read_sets
from loco_worker.sources.held_back import Held, held_back
from loco_worker.sources.rows import Row
from loco_worker.sources.sieve import Sieve
from loco_worker.sources.sources import open_source
from loco_worker.sources.validation import apart

TRAINING_DATA = "training_data.jsonl"
VALIDATION_DATA = "validation_data.jsonl"
SAMPLES = "samples.jsonl"
PREFERENCE_DATA = "preference_data.jsonl"
EVAL_SETS = "eval_sets"

Conversation = list[dict[str, str]]

#: Overlapping rows listed in the result; all are counted.
OVERLAPS_LISTED = 1000
#: Why rows are missing where the answers of the source itself are taken.
_NO_MORE = "the source has no more usable rows"


def run(spec: PrepareSpec, inputs: Inputs, out_dir: Path, emit: Emitter) -> PrepareResult:
    """Reads, filters, samples and writes rows.

    Raises:
        SourceUnreachable, DataError, InvalidRequest: see `loco_worker.sources.sources.open_source`;
            DataError also when no row is left.
        OllamaUnavailable, OllamaRefused: of source self, see `loco_worker.sampling.base_answers`.
        SandboxUnavailable: a problem asks for code, which eval could not grade here: better known
            before hours of training.
    """
    index = OverlapIndex(spec.overlap_ngram)
    eval_sets = read_sets(spec.eval_sets, inputs, index, emit)
    check_gradable(item for items in eval_sets.values() for item in items)

    emit.progress(message=f"opening source {spec.source.kind}", percent=0, last=True)
    sieve = Sieve(index)
    if isinstance(spec.source, SelfSource):
        own = own_answers(spec, inputs, sieve, out_dir, emit)
        data = _Data(own.description, own.rows, own.validation, own, held=own.held)
    else:
        data = _given(spec.source, spec, inputs, sieve, emit)
    if data.held is not None and data.held.items:
        check_gradable(data.held.items)
        eval_sets[data.held.name] = data.held.items
    _say(data, spec, sieve, emit)
    files = _files(data, eval_sets, out_dir)
    emit.progress(message=f"{len(data.rows)} rows", percent=100, last=True)
    return PrepareResult(
        seconds=0,
        files=files,
        source=data.description,
        read=sieve.read,
        kept=len(data.rows),
        dropped=Dropped(**sieve.dropped),
        overlaps=tuple(sieve.overlaps[:OVERLAPS_LISTED]),
        eval_items_checked=index.items,
        eval_sets={name: len(items) for name, items in eval_sets.items()},
        eval_sources=spec.eval_sets,
        held_back=data.held and data.held.result,
        validation=len(data.validation),
        sampling=data.own.sampling if data.own else None,
    )


class _Data(NamedTuple):
    """What is written."""

    #: The source in words.
    description: str
    rows: Sequence[Conversation]
    validation: Sequence[Conversation]
    #: The rest, of source self.
    own: OwnAnswers | None = None
    #: Of rows that are pairs.
    pairs: Sequence[dict[str, Any]] = ()
    #: What is held back to measure with; None: nothing is asked for.
    held: Held | None = None


def _given(
    source: GivenSource, spec: PrepareSpec, inputs: Inputs, sieve: Sieve, emit: Emitter
) -> _Data:
    """The rows of a source that holds or makes their answers."""
    records = open_source(source, inputs, spec.seed, between=emit.check_stop)

    def every(usable: int) -> None:
        emit.check_stop()
        wanted = spec.examples + spec.validation
        done = usable / wanted if records.size is None else sieve.read / records.size
        emit.progress(
            step=min(usable, spec.examples),
            total_steps=spec.examples,
            percent=min(100.0, round(100 * done, 1)),
            message=f"{sieve.read} rows read, {usable} usable",
        )

    usable, held = held_back(sieve.usable(records, every), spec, sieve, emit)
    rows, rest = _divided(usable, records.size, spec)
    if not rows:
        raise DataError(
            f"{records.description} has no usable row: read {sieve.read}, left out "
            f"{sieve.in_words()}.",
            param="prepare.source",
            hint="Rows need a question and an answer, or chat turns; docs/recipes.md has the "
            "layouts. Rows that overlap the eval set are always left out.",
        )
    if spec.validation_source is not None:
        held_out = open_source(spec.validation_source, inputs, spec.seed, between=emit.check_stop)
        rest = Sieve(sieve.index).usable(held_out, lambda _: emit.check_stop())
    validation = apart(rest, rows, spec, emit)
    return _Data(
        records.description,
        [row.conversations for row in rows],
        [row.conversations for row in validation],
        pairs=[_pair(row) for row in rows if row.rejected],
        held=held,
    )


def _pair(row: Row) -> dict[str, Any]:
    """A row with a worse answer, in TRL's conversational preference format."""
    *prompt, chosen = row.conversations
    return {"prompt": prompt, "chosen": [chosen], "rejected": [row.rejected]}


def _say(data: _Data, spec: PrepareSpec, sieve: Sieve, emit: Emitter) -> None:
    """What came of the source, and what is missing, in the log."""
    solved_only = isinstance(spec.source, SelfSource) and spec.source.fallback == "drop"
    if len(data.rows) < spec.examples:
        why = "too few questions were solved" if solved_only else _NO_MORE
        emit.log(f"{len(data.rows)} rows instead of {spec.examples}: {why}")
    if len(data.validation) < spec.validation:
        why = "too few other questions were solved" if solved_only else _NO_MORE
        emit.log(
            f"{len(data.validation)} validation rows instead of {spec.validation}: {why} that overlap "
            "no training row"
        )
    emit.log(
        f"{len(data.rows)} rows of {data.description}, {len(data.validation)} for validation; "
        f"read {sieve.read}, left out {sieve.in_words()}; compared with {sieve.eval_items} eval "
        "items"
    )
    for words in sieve.malformed:
        emit.log(f"dropped: {words}")
    for overlap in sieve.overlaps[:10]:
        emit.log(f"row {overlap.row} overlaps {overlap.eval_item} ({overlap.rule})")


def _files(data: _Data, eval_sets: Mapping[str, list[EvalItem]], out_dir: Path) -> dict[str, str]:
    """Writes what there is and names it."""
    content: dict[str, Iterable[dict[str, Any]]] = {
        TRAINING_DATA: ({"conversations": turns} for turns in data.rows)
    }
    if data.validation:
        content[VALIDATION_DATA] = ({"conversations": turns} for turns in data.validation)
    if data.own:
        content[SAMPLES] = data.own.samples
        if data.own.pairs:
            content[PREFERENCE_DATA] = data.own.pairs
    if data.pairs:
        content[PREFERENCE_DATA] = data.pairs
    for name, items in eval_sets.items():
        content[f"{EVAL_SETS}/{name}.jsonl"] = (written(item) for item in items)
    for name, rows in content.items():
        (out_dir / name).parent.mkdir(exist_ok=True)
        _write(out_dir / name, rows)
    return {name: name for name in content}


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


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main(Stage.PREPARE, run))
