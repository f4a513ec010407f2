"""Rows of the training source that are held back to measure with: an eval set of source `split`."""

from collections.abc import Iterator
from typing import NamedTuple

from loco.contracts.results import HeldBackRows
from loco.contracts.sources import SplitSource
from loco.contracts.specs import PrepareSpec
from loco.grading.eval_items import EvalItem
from loco.grading.held_back import Candidate, answer_of, hold_back
from loco.recipes.default_sets import split_of
from loco.stage.program import Emitter
from loco_worker.sources.rows import Row
from loco_worker.sources.sieve import Sieve


class Held(NamedTuple):
    """What is held back."""

    #: The eval set.
    name: str
    items: list[EvalItem]
    result: HeldBackRows


def held_back(
    usable: Iterator[Row], spec: PrepareSpec, sieve: Sieve, emit: Emitter
) -> tuple[Iterator[Row], Held | None]:
    """Takes the problems out of the usable rows, and the rows that overlap one.

    They join the sieve's index, so that no other source brings them back.

    Args:
        usable: rows of a source that has an end.
        spec: says whether, and how many.
        sieve: they came through.
        emit: hears what came of it, and of stop requests.

    Returns:
        The other rows, and what was held back; None: nothing was asked for.
    """
    asked = split_of(spec)
    if asked is None:
        return usable, None
    name, wanted = asked
    split = wanted.source
    assert isinstance(split, SplitSource)
    rows = list(usable)
    found = hold_back(
        [_candidate(row) for row in rows],
        split,
        wanted.seed,
        ngram=spec.overlap_ngram,
        between=emit.check_stop,
    )
    for item in found.items:
        sieve.index.add(f"{name}/{item.id}", item.question)
    for place in sorted(found.alike):
        sieve.leave_out(rows[place])
    count = len(found.items)
    if count:
        emit.log(f"eval.sets.{name}: {count} rows held back, grader {found.grader}: {found.why}")
    else:
        emit.log(
            f"eval.sets.{name}: no row is held back, so eval measures nothing: {found.why}. Name an "
            "eval set of your own in eval.sets"
        )
    gone = found.places | found.alike
    others = (row for place, row in enumerate(rows) if place not in gone)
    result = HeldBackRows(set=name, rows=count, grader=found.grader, why=found.why)
    return others, Held(name, list(found.items), result)


def _candidate(row: Row) -> Candidate:
    turns = row.conversations
    name = f"row-{row.number}"
    once = sum(turn["role"] == "user" for turn in turns) == 1 and row.rejected is None
    return Candidate(
        name,
        row.question,
        answer_of(turns[-1]["content"]) if once else None,
        system=turns[0]["content"] if turns[0]["role"] == "system" else None,
        grader=row.grader,
        item=row.item,
    )
