"""Which training rows are held back to measure with, and how their answers are judged.

Stage prepare holds them back where a recipe names no eval set (source `split`), and `loco check` says
beforehand which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from loco.contracts.sources import FEWEST_HELD_BACK, SplitSource
from loco.datasets.overlap import OverlapIndex
from loco.datasets.rows import Row
from loco.datasets.split import in_order, problems_of
from loco.grading.answers import without_thinking
from loco.grading.eval_items import EvalItem
from loco.grading.picking import Picked, pick

#: Answers that a grader is picked from.
_LOOKED_AT = 5_000
#: The share of the other rows that may overlap the problems; where more do, rows are too much alike.
_MOST_ALIKE = 0.5


@dataclass(frozen=True)
class Candidate:
    """A usable row, as a problem."""

    #: ID of the problem.
    id: str
    #: All that the user says.
    question: str
    #: The right answer; None: the row is none to measure with, like a talk or a pair of answers.
    answer: str | None
    system: str | None = None
    #: How the row itself says its answer is judged.
    grader: Any = None
    #: The problem, where the row comes with it.
    item: EvalItem | None = None


def candidate_of(row: Row) -> Candidate:
    """A user's row as a problem."""
    first = row.turns[0]
    return Candidate(
        f"row-{row.line}",
        row.question,
        answer_of(row.answer) if row.asks_once and row.rejected is None else None,
        system=first["content"] if first["role"] == "system" else None,
        grader=row.problem.get("grader"),
    )


def answer_of(text: str) -> str | None:
    """What a model's answer is compared with: without thoughts, which no grader reads; None: nothing is left."""
    return without_thinking(text).strip() or None


@dataclass(frozen=True)
class HeldBack:
    """What is held back."""

    #: The problems, in the order in which they are asked; none: `why`.
    items: tuple[EvalItem, ...]
    #: The places of their rows.
    places: frozenset[int]
    #: Places of rows that overlap a problem.
    alike: frozenset[int]
    #: Kind of the grader that was picked, or `own`: the rows'.
    grader: str | None
    #: For people: why this grader, or why nothing is held back.
    why: str


def hold_back(
    rows: Sequence[Candidate],
    split: SplitSource,
    seed: int,
    *,
    ngram: int,
    between: Callable[[], object] = lambda: None,
) -> HeldBack:
    """Chooses problems among rows.

    Args:
        rows: usable ones, each question once.
        split: how many are wanted.
        seed: of the choice.
        ngram: words in a row that a problem and a training row may not share.
        between: called now and then; what it raises ends the choice.
    """
    able = [place for place, row in enumerate(rows) if row.answer is not None]
    wanted = min(problems_of(len(rows), share=split.share, most=split.most), len(able))
    if not able:
        return _nothing("no row asks one question and holds one right answer")
    if wanted < FEWEST_HELD_BACK:
        least = FEWEST_HELD_BACK * 3
        return _nothing(f"{len(able)} of {len(rows)} rows could be, and {least} are the least")
    ordered = [able[place] for place in in_order([rows[p].question for p in able], seed)]
    picked, items = _problems(rows, ordered, wanted)
    if len(items) < FEWEST_HELD_BACK:
        return _nothing("the answers of too few rows can be judged")
    alike = _alike(rows, items, ngram, between)
    others = len(rows) - len(items)
    if len(alike) > _MOST_ALIKE * others:
        return _nothing(
            f"{len(alike)} of the {others} other rows ask nearly the same; put what all questions share "
            "into a system prompt, or name an eval set"
        )
    kind, why = (picked.kind, picked.why) if picked else ("own", "the rows say how they are judged")
    return HeldBack(tuple(items.values()), frozenset(items), alike, kind, why)


def _problems(
    rows: Sequence[Candidate], ordered: Sequence[int], wanted: int
) -> tuple[Picked | None, dict[int, EvalItem]]:
    """The first rows that make a problem, by their places, and the grader of those that bring none."""
    bare = [p for p in ordered[:_LOOKED_AT] if rows[p].item is None and rows[p].grader is None]
    picked = pick([rows[place].answer or "" for place in bare]) if bare else None
    items: dict[int, EvalItem] = {}
    for place in ordered[:_LOOKED_AT]:
        if len(items) == wanted:
            break
        item = rows[place].item or _item(rows[place], picked)
        if item is not None:
            items[place] = item.model_copy(update={"id": rows[place].id})
    return picked, items


def _item(row: Candidate, picked: Picked | None) -> EvalItem | None:
    """The problem of a row; None: it cannot be graded."""
    value: dict[str, Any] = {"id": row.id, "question": row.question}
    if row.system is not None:
        value["system"] = row.system
    if row.grader is not None:
        value |= {"answer": row.answer, "grader": row.grader}
    elif picked is not None and row.answer is not None:
        value |= picked.fields(row.answer)
    try:
        return EvalItem.model_validate(value)
    except ValidationError:
        return None


def _alike(
    rows: Sequence[Candidate],
    items: dict[int, EvalItem],
    ngram: int,
    between: Callable[[], object],
) -> frozenset[int]:
    index = OverlapIndex(ngram)
    for item in items.values():
        index.add(item.id, item.question)
    found = set()
    for place, row in enumerate(rows):
        if place % 100 == 0:
            between()
        if place not in items and index.match(row.question) is not None:
            found.add(place)
    return frozenset(found)


def _nothing(why: str) -> HeldBack:
    return HeldBack((), frozenset(), frozenset(), None, why)
