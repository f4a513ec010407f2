"""A file of rows as training rows and an eval set of its own: no question in both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loco.contracts.datasets import Layout
from loco.contracts.errors import DataError
from loco.datasets import formats
from loco.datasets.formats import Problem
from loco.datasets.overlap import OverlapIndex, normalise
from loco.datasets.rows import Row
from loco.datasets.split import chosen, problems_of
from loco.grading.picking import Picked, pick

#: Rows that a draft is made of; a larger file is pushed as a data set.
MOST_ROWS = 100_000
#: Share of the rows that becomes problems, and how many at most.
SHARE = 0.2
MOST_PROBLEMS = 200
#: Words in a row that a problem and a training row may not share; as prepare's default.
_NGRAM = 13
_FEWEST_ROWS = 6
_NAMED = 5


@dataclass(frozen=True)
class Divided:
    """Rows, divided."""

    file: str
    training: list[Row]
    problems: list[Row]
    picked: Picked
    #: Rows of the file, and what became of those that are in neither part.
    read: int
    bad: tuple[Problem, ...]
    bad_count: int
    duplicates: int
    #: Rows left out because they share a long run of words with a problem.
    overlaps: int

    @property
    def longest(self) -> int:
        """Characters of the longest row."""
        return max(
            sum(len(t["content"]) for t in r.turns) for r in (*self.training, *self.problems)
        )

    @property
    def longest_answer(self) -> int:
        """Characters of the longest answer."""
        return max(len(row.answer) for row in (*self.training, *self.problems))


def divided(path: Path, *, mapping: Mapping[str, str] | None = None, seed: int = 0) -> Divided:
    """Reads a file and divides its rows.

    Args:
        path: JSONL, CSV or Parquet.
        mapping: field to column.
        seed: of the split: the same gives the same.

    Raises:
        DataError: the file cannot be read, or has too few rows that can be used.
    """
    if not path.is_file():
        raise DataError(
            f"There is no file {str(path)!r}.", param="--data", hint="Name a file of rows."
        )
    rows: list[Row] = []
    bad: list[Problem] = []
    seen: set[str] = set()
    bad_count = duplicates = read = 0
    for entry in formats.read(path, mapping=mapping):
        read += 1
        if isinstance(entry, Problem):
            bad_count += 1
            bad += [entry] if len(bad) < _NAMED else []
            continue
        if entry.layout is Layout.PAIRS:
            raise DataError(
                f"{path.name} holds pairs of answers (chosen, rejected), not rows to learn from.",
                param="--data",
                hint="Give rows of question and answer. docs/recipes.md explains how to use pairs.",
            )
        key = normalise(entry.question) or entry.question
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        rows.append(entry)
        if len(rows) > MOST_ROWS:
            raise DataError(
                f"{path.name} has more than {MOST_ROWS:,} rows.",
                param="--data",
                hint="Push it with `loco data push` and name it in your own recipe.",
            )
    if len(rows) < _FEWEST_ROWS:
        raise _too_few(path, rows, bad_count, bad, duplicates)
    training, problems, overlaps = _parted(rows, seed)
    picked = pick([row.answer for row in rows if row.asks_once])
    return Divided(
        path.name, training, problems, picked, read, tuple(bad), bad_count, duplicates, overlaps
    )


def _parted(rows: list[Row], seed: int) -> tuple[list[Row], list[Row], int]:
    askable = [row for row in rows if row.asks_once]
    count = min(problems_of(len(rows), share=SHARE, most=MOST_PROBLEMS), len(askable))
    if not count:
        raise DataError(
            "No row has exactly one question with its answer, so nothing can be measured.",
            param="--data",
            hint="Add rows with one question and its answer, or write a recipe with an eval set.",
        )
    places = chosen([row.question for row in askable], count, seed)
    problems = [askable[place] for place in places]
    index = OverlapIndex(_NGRAM)
    for row in problems:
        index.add(str(row.line), row.question)
    lines = {row.line for row in problems}
    rest = [row for row in rows if row.line not in lines]
    training = [row for row in rest if index.match(row.question) is None]
    if not training:
        raise DataError(
            "All rows ask nearly the same question, so none is left to learn from.",
            param="--data",
            hint="Move the common part into a system prompt, and keep the rest.",
        )
    return training, problems, len(rest) - len(training)


def _too_few(
    path: Path, rows: list[Row], bad_count: int, bad: list[Problem], duplicates: int
) -> DataError:
    if not rows:
        return formats.none_usable(path.name, bad_count, bad)
    said = f", {bad_count} cannot be used ({bad[0]})" if bad else ""
    return DataError(
        f"{path.name} has {len(rows)} usable rows, counting each question "
        f"once{said}{f', {duplicates} are duplicates' if duplicates else ''}.",
        param="--data",
        hint=f"You need at least {_FEWEST_ROWS}. 60 begin to show something, 200 are a good start.",
    )


def training_line(row: Row) -> dict[str, Any]:
    """A training row as a line of rows.jsonl."""
    if len(row.turns) == 2:
        return {"question": row.question, "answer": row.answer}
    return {"conversations": row.turns}


def problem_line(row: Row, picked: Picked) -> dict[str, Any]:
    """A problem as a line of an eval set."""
    line: dict[str, Any] = {"id": f"line-{row.line}", "question": row.question}
    if row.turns[0]["role"] == "system":
        line["system"] = row.turns[0]["content"]
    return line | picked.fields(row.answer)


def jsonl(lines: list[dict[str, Any]]) -> str:
    """A line each, in order."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
