"""Files of rows: JSONL, CSV and Parquet, read row by row within bounds.

JSONL and CSV take nothing but the standard library, so the client on a laptop reads as the server
does. Parquet needs pyarrow. A file is somebody else's: what is read of it is bounded in bytes,
rows, columns and length of a row, and nothing of it is guessed: "007" stays "007".
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loco.contracts.datasets import Format, Layout
from loco.contracts.errors import DataError
from loco.datasets import parquet
from loco.datasets.rows import BadRow, Columns, Row, row_of
from loco.datasets.values import value_of

#: Rows of a file.
MOST_ROWS = 1_000_000
MOST_COLUMNS = 1000
#: Characters of a row: over a million tokens, the longest context there is.
LONGEST_ROW = 4 * 2**20
#: Characters of all rows that are read: what a packed file may unpack to.
MOST_CHARACTERS = 2**30

_DELIMITERS = ",;\t|"
_SUFFIXES = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
}
#: Bytes that are looked at to tell what a file is.
_HEAD = 64 * 1024
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used, and what to do about it."""

    #: Its line, or its number in a Parquet file, from 1.
    line: int
    what: str
    fix: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.what}. {self.fix}"


@dataclass(frozen=True)
class Survey:
    """What a file holds."""

    format: Format
    #: Of the first row that can be used.
    layout: Layout
    #: Rows that can be used.
    rows: int
    #: Rows that cannot.
    bad: int
    #: The first of these.
    problems: tuple[Problem, ...]
    #: The first rows that can be used.
    first: tuple[Row, ...]


def survey(
    path: Path,
    *,
    format: Format | None = None,  # noqa: A002 (the word of the API)
    mapping: Mapping[str, str] | None = None,
    problems: int = 20,
    first: int = 5,
    between: Callable[[], object] = lambda: None,
) -> Survey:
    """Reads a whole file and says what it holds, keeping almost nothing.

    Args:
        path: the file.
        format: what it is; none: by its content and name.
        mapping: field to column.
        problems: bad rows to name.
        first: good rows to show.
        between: called with every row; what it raises ends the reading.

    Raises:
        DataError: as of `read`, or no row can be used: names the first bad ones.
    """
    kind = format or format_of(path)
    good = bad = 0
    layout: Layout | None = None
    named: list[Problem] = []
    shown: list[Row] = []
    for entry in read(path, format=kind, mapping=mapping):
        between()
        if isinstance(entry, Problem):
            bad += 1
            if len(named) < problems:
                named.append(entry)
            continue
        good += 1
        layout = layout or entry.layout
        if len(shown) < first:
            shown.append(entry)
    if layout is None:
        raise none_usable(path.name, bad, named)
    return Survey(kind, layout, good, bad, tuple(named), tuple(shown))


def none_usable(name: str, bad: int, problems: list[Problem]) -> DataError:
    """What is said of a file without a row that can be used."""
    if not bad:
        return DataError(f"{name} has no rows.", hint="Write one row per line.")
    return DataError(
        f"None of the {bad:,} rows of {name} can be used. " + " ".join(map(str, problems[:3])),
        hint="Write rows of question and answer, or of messages. Or say which columns have "
        "them: `--map question=COLUMN --map answer=COLUMN`.",
    )


def format_of(path: Path) -> Format:
    """What kind of file it is: by its first bytes, else by its name, else by how it begins.

    Raises:
        DataError: it is none of the three.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(parquet.MAGIC):
        return Format.PARQUET
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"%PDF")):
        raise DataError(
            f"{path.name} is compressed or a document (Excel's .xlsx, .zip, .gz).",
            hint="Unpack it, or save it as `CSV UTF-8`.",
        )
    named = _SUFFIXES.get(path.suffix.lower())
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if named == "parquet":
        raise DataError(
            f"{path.name} is not a Parquet file.", hint="Write the file again, or send CSV."
        )
    if start.startswith(b"[") and named != "csv":
        raise DataError(
            f"{path.name} is one JSON array. It must have one row per line.",
            hint="Convert it: `jq -c '.[]' FILE > rows.jsonl`.",
        )
    return Format(named) if named else Format.JSONL if start.startswith(b"{") else Format.CSV


def read(
    path: Path,
    *,
    format: Format | None = None,  # noqa: A002 (the word of the API)
    mapping: Mapping[str, str] | None = None,
) -> Iterator[Row | Problem]:
    """The rows of a file in their order, each as what it means or as what is wrong with it.

    Args:
        path: the file.
        format: what it is; none: by its content and name.
        mapping: field to column.

    Raises:
        DataError: the file is broken as a whole (its line is named), its columns hold no rows to
            train on, or it is beyond the bounds.
    """
    kind = format or format_of(path)
    columns = Columns(mapping)
    records = {Format.JSONL: _jsonl, Format.CSV: _csv, Format.PARQUET: _parquet}[kind]
    pairs: bool | None = None
    for number, (line, record) in enumerate(records(path, columns), start=1):
        if number > MOST_ROWS:
            raise DataError(
                f"{path.name} has more than {MOST_ROWS:,} rows.", hint="Use a part of it."
            )
        try:
            if isinstance(record, BadRow):
                raise record
            row = row_of(line, record, columns)
        except BadRow as error:
            yield Problem(line, str(error), error.fix, kind.unit)
            continue
        paired = row.layout is Layout.PAIRS
        if pairs is None:
            pairs = paired
        if paired is not pairs:
            said = "is a pair" if paired else "is not a pair"
            yield Problem(
                line,
                f"{said}, unlike the rows before",
                "Put pairs into a file of their own.",
                kind.unit,
            )
            continue
        yield row


def _jsonl(path: Path, columns: Columns) -> Iterator[tuple[int, object]]:
    first = True
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value: object = value_of(line)
        except json.JSONDecodeError as error:
            if first:
                raise DataError(
                    f"{path.name}, line {number}, column {error.colno}: not JSON: {error.msg}.",
                    hint="Write one JSON object per line. If it is a CSV file, name it `.csv`.",
                ) from error
            value = BadRow(f"column {error.colno}: not JSON: {error.msg}", "Write one JSON object.")
        except ValueError as error:
            value = BadRow(str(error), "Shorten it.")
        if first and isinstance(value, dict) and len(value) <= MOST_COLUMNS:
            columns.check(str(name) for name in value)
        if isinstance(value, dict) and len(value) > MOST_COLUMNS:
            value = BadRow(f"{len(value):,} fields", f"At most {MOST_COLUMNS:,} are allowed.")
        first = False
        yield number, value


def _csv(path: Path, columns: Columns) -> Iterator[tuple[int, object]]:
    # the module knows one limit for all its readers; ours is the only one set in these programs
    csv.field_size_limit(LONGEST_ROW)
    delimiter = _delimiter(path, columns)
    place = _Place(path)
    reader = csv.reader(place, delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        start = place.line + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _broken(path, start, error) from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(path, cells, columns)
            continue
        if sum(map(len, cells)) > LONGEST_ROW:
            yield start, BadRow(f"longer than {LONGEST_ROW:,} characters", "Shorten the row.")
        elif len(cells) > len(header) and any(cells[len(header) :]):
            said = {"\t": "tab"}.get(delimiter, delimiter)
            fix = f'Put texts with `{said}` in them in double quotes: "…".'
            yield start, BadRow(f"{len(cells)} cells under {len(header)} columns", fix)
        else:
            yield start, dict(zip(header, cells, strict=False))


def _header(path: Path, cells: list[str], columns: Columns) -> list[str]:
    """The names of the columns."""
    names = [cell.strip() for cell in cells]
    if len(names) > MOST_COLUMNS:
        raise DataError(
            f"{path.name} has {len(names):,} columns.",
            hint=f"At most {MOST_COLUMNS:,} are allowed.",
        )
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path.name} has two columns {twice!r:.80}.", hint="Rename one of them.")
    columns.check(names)
    return names


def _delimiter(path: Path, columns: Columns) -> str:
    """The sign between cells: the one by which the header has columns we know, else most columns."""
    line = next((line for _, line in _lines(path) if line.strip()), "")

    def columns_by(sign: str) -> tuple[bool, int]:
        try:
            names = [n.strip() for n in next(csv.reader([line], delimiter=sign), [])]
            columns.check(names)
        except (DataError, csv.Error):
            return False, len(line.split(sign))
        return True, len(names)

    return max(_DELIMITERS, key=columns_by)


def _broken(path: Path, start: int, error: csv.Error) -> DataError:
    """What the csv module found, in a row that begins on a line."""
    said = str(error)
    if "field larger" in said or "unexpected end" in said:
        return DataError(
            f'{path.name}: a quote (") that is opened in the row of line {start} is not closed, or a '
            f"cell has over {LONGEST_ROW:,} characters.",
            hint='Close it. Inside a quoted cell write a quote twice: "she said ""no""".',
        )
    return DataError(
        f"{path.name}, line {start}: {said}.",
        hint='Put cells that hold quotes in quotes, and write inner ones twice: "she said ""no""".',
    )


class _Place:
    """The lines of a file for the csv module, with the number of the last one given."""

    def __init__(self, path: Path) -> None:
        self._lines = _lines(path, ends=True)
        self.line = 0

    def __iter__(self) -> "_Place":
        return self

    def __next__(self) -> str:
        self.line, line = next(self._lines)
        return line


def _lines(path: Path, *, ends: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers; only newlines end one. Tabs of Excel are UTF-16.

    Args:
        path: the file.
        ends: keep the newlines.

    Raises:
        DataError: a line is no UTF-8, or without end.
    """
    number = 0
    with _text(path) as file:
        while True:
            number += 1
            try:
                line = file.readline(LONGEST_ROW + 1)
            except UnicodeError as error:
                raise DataError(
                    f"{path.name}, line {number} or soon after: not UTF-8 text.",
                    hint="Save the file as UTF-8. Excel calls it `CSV UTF-8`.",
                ) from error
            if not line:
                return
            if len(line) > LONGEST_ROW:
                raise DataError(
                    f"{path.name}, line {number}: longer than {LONGEST_ROW:,} characters.",
                    hint="Write one row per line, and shorten this one.",
                )
            yield number, line if ends else line.rstrip("\n")


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as raw:
        encoding = "utf-16" if raw.read(2) in _UTF16 else "utf-8-sig"
    with path.open(encoding=encoding, newline="\n") as file:
        yield file


def _parquet(path: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    read = 0
    for number, record in enumerate(parquet.records(path, columns.check), start=1):
        length = _characters(record)
        read += length
        if read > MOST_CHARACTERS:
            raise DataError(
                f"{path.name} unpacks to more than {MOST_CHARACTERS:,} characters.",
                hint="Use a part of it.",
            )
        if length > LONGEST_ROW:
            yield number, BadRow(f"longer than {LONGEST_ROW:,} characters", "Shorten it.")
        else:
            yield number, record


def _characters(value: Any) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
