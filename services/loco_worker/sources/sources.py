"""Where rows come from: a hub data set, a file, an upload, or a generator."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from loco.contracts.errors import DataError
from loco.contracts.files import sha256_of
from loco.contracts.sources import (
    ArithmeticSource,
    DatasetSource,
    GivenSource,
    HuggingFaceSource,
    JsonlSource,
    ReasoningGymSource,
)
from loco.contracts.specs import Inputs
from loco.datasets import rows
from loco.datasets.formats import Problem
from loco.datasets.rows import Columns
from loco.datasets.values import value_of
from loco.grading.eval_items import EvalItem, parse_line, read_lines
from loco.recipes.data_files import data_file
from loco_worker.sources import arithmetic, gym
from loco_worker.sources.hub import hub_table
from loco_worker.sources.questions import question_from, question_of, with_item
from loco_worker.sources.rows import Malformed, Row, bare_row, row_from, row_of, worked_row
from loco_worker.sources.uploaded import rows_of


class Record(Protocol):
    """Something that becomes a row, or says why it can't."""

    def __call__(self) -> Row:
        """The row; raises `Malformed` or `Empty`."""


#: Makes a row of a number in the source and a value.
Reader = Callable[[int, Any], Row]


@dataclass(frozen=True)
class Records:
    """The records of a source."""

    #: The source in words.
    description: str
    records: Iterator[Record]
    #: Number of records; None: a generator, without end.
    size: int | None


def open_source(
    source: GivenSource,
    inputs: Inputs,
    seed: int,
    *,
    questions: bool = False,
    between: Callable[[], object] = lambda: None,
) -> Records:
    """The records of a source.

    Args:
        source: its spec.
        inputs: says where files may lie.
        seed: seed of generators.
        between: called while a file is read; what it raises ends that.
        questions: rows get their `item`, and those without a right answer to grade by are malformed.

    Raises:
        SourceUnreachable: the hub cannot be reached; nothing is put in its place.
        DataError: a line of a file isn't JSON (file and line are named), or no such file.
        InvalidRequest: reasoning-gym has no such task.
    """
    if isinstance(source, HuggingFaceSource):
        table = hub_table(source)
        return table_records(
            table.rows, table.columns, table.description, question_of if questions else row_of
        )
    if isinstance(source, JsonlSource):
        return _file(source, inputs, question_of if questions else row_of, between)
    if isinstance(source, DatasetSource):
        return _uploaded(source, inputs, question_from if questions else row_from, between)
    return Records(_in_words(source), _generated(source, seed, questions), None)


def held_out_problems(
    source: ReasoningGymSource | ArithmeticSource, seed: int
) -> Iterator[tuple[EvalItem, str | None]]:
    """Generated eval problems without end, each with what identifies it to its generator."""
    if isinstance(source, ArithmeticSource):
        for number, made in enumerate(arithmetic.problems(f"held-out {seed}"), start=1):
            yield (
                EvalItem(
                    id=f"h{number:04}",
                    question=made.question,
                    answer=str(made.answer),
                    kind=made.kind,
                ),
                made.key,
            )
        return
    for number, posed in enumerate(gym.problems(source.tasks, f"held-out {seed}"), start=1):
        item = EvalItem(
            id=f"h{number:04}", question=posed.question, answer=posed.answer, kind=posed.task
        )
        yield item, None


def _generated(
    source: ReasoningGymSource | ArithmeticSource, seed: int, questions: bool
) -> Iterator[Record]:
    if isinstance(source, ArithmeticSource):
        for number, made in enumerate(arithmetic.problems(seed), start=1):
            record = _arithmetic_record(number, made)
            yield _posed(record, str(made.answer), made.kind) if questions else record
        return
    for number, posed in enumerate(gym.problems(source.tasks, seed), start=1):
        record = _gym_record(number, posed)
        yield _posed(record, posed.answer, posed.task) if questions else record


def _arithmetic_record(number: int, made: arithmetic.Problem) -> Record:
    answer = f"{made.work}\n#### {made.answer}"
    return lambda: worked_row(number, made.question, answer, made.key)


def _gym_record(number: int, posed: gym.GymProblem) -> Record:
    if posed.worked is not None:
        worked = posed.worked
        return lambda: worked_row(number, posed.question, worked)
    return lambda: bare_row(number, posed.question, posed.answer)


def _posed(record: Record, answer: str, kind: str) -> Record:
    """A generated record whose row has its `item`."""
    return lambda: with_item(record(), answer, kind)


def _file(
    source: JsonlSource, inputs: Inputs, reader: Reader, between: Callable[[], object]
) -> Records:
    path = data_file(source.path, inputs, "prepare.source.path", between)
    # read whole and parsed first: a broken line at the end must fail before anything is written
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        between()
        if line.strip():
            records.append(_line_record(path, number, line, reader))
    digest = sha256_of(path, between)
    return Records(f"{path.name} (sha256 {digest[:12]})", iter(records), len(records))


def _uploaded(
    source: DatasetSource,
    inputs: Inputs,
    reader: Callable[[rows.Row], Row],
    between: Callable[[], object],
) -> Records:
    path, found = rows_of(source, inputs, "prepare.source.dataset", between)

    def record(entry: rows.Row | Problem) -> Record:
        return _unusable(entry.line, entry.what) if isinstance(entry, Problem) else _given(entry)

    def _given(row: rows.Row) -> Record:
        return lambda: reader(row)

    digest = inputs.frozen[source.file].sha256 if source.file in inputs.frozen else ""
    return Records(f"{path.name} (sha256 {digest[:12]})", map(record, found), len(found))


def _line_record(path: Path, number: int, line: str, reader: Reader) -> Record:
    """The record of a line; what is JSON and cannot be used is dropped as one row, not the file."""
    try:
        return _value_record(number, value_of(line), reader)
    except json.JSONDecodeError:
        parse_line(path, number, line)  # raises, with its place
        raise
    except ValueError as error:
        return _unusable(number, str(error))


def _unusable(number: int, why: str) -> Record:
    def refuse() -> Row:
        raise Malformed(f"row {number}: {why}")

    return refuse


def _value_record(number: int, value: Any, reader: Reader) -> Record:
    def read() -> Row:
        try:
            row = reader(number, value)
            for turn in row.conversations:
                "".join(turn.values()).encode()
        except Malformed as error:
            raise Malformed(f"row {number}: {error}") from error
        except UnicodeEncodeError as error:
            raise Malformed(f"row {number}: half a surrogate pair is not a character") from error
        return row

    return read


def table_records(
    table: Iterable[Any], columns: list[str], description: str, reader: Reader = row_of
) -> Records:
    """The records of a table of question/answer, chat or other columns.

    Args:
        table: its rows.
        columns: their names.
        description: the table in words.
        reader: makes a row of one of them.

    Raises:
        DataError: it has none; names the columns it has.
    """
    try:
        Columns().check(columns)
    except DataError as error:
        raise DataError(
            f"{description}: {error.message}",
            param="prepare.source",
            hint="Choose another data set or configuration, or convert it to a jsonl file.",
        ) from error
    values = list(table)
    records = (_value_record(number, value, reader) for number, value in enumerate(values, start=1))
    return Records(description, records, len(values))


def _in_words(source: ReasoningGymSource | ArithmeticSource) -> str:
    if isinstance(source, ArithmeticSource):
        return "arithmetic generator"
    mixture = ", ".join(f"{name} {weight:g}" for name, weight in sorted(source.tasks.items()))
    return f"reasoning-gym {version('reasoning-gym')}: {mixture}"
