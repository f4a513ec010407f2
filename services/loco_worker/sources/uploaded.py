"""Rows of an uploaded data set, as it was when the job was accepted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loco.contracts.errors import DataError
from loco.contracts.sources import DatasetSource
from loco.contracts.specs import Inputs
from loco.datasets.formats import Problem, read
from loco.datasets.rows import Row
from loco.recipes.data_files import data_file


def rows_of(
    source: DatasetSource, inputs: Inputs, field: str, between: Callable[[], object]
) -> tuple[Path, list[Row | Problem]]:
    """The rows of a data set, and the file they are in.

    Args:
        source: names it.
        inputs: of the attempt.
        field: of the request that names it.
        between: called with every row; what it raises ends the reading.

    Raises:
        DataError: see `recipes.data_files.data_file` and `datasets.formats.read`.
    """
    path = data_file(source.file, inputs, field, between)
    rows = []
    for row in read(path, format=source.format, mapping=source.mapping):
        between()
        rows.append(row)
    return path, rows


def eval_values(rows: list[Row | Problem], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The problems that rows pose, as lines of an eval set; what cannot be used was left out at upload.

    Raises:
        DataError: a row asks more than once, or of no user.
    """
    for row in rows:
        if isinstance(row, Problem):
            continue
        if not row.asks_once:
            raise DataError(
                f"{name}, line {row.line}: a chat with several questions cannot be a "
                "problem of an eval set.",
                param="eval.sets",
                hint="Push rows with one question and its answer.",
            )
        first = row.turns[0]
        system = {"system": first["content"]} if first["role"] == "system" else {}
        yield (
            row.line,
            {**system, **row.problem, "question": row.question, "answer": row.answer},
        )
