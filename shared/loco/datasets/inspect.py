"""A look through a whole file of rows: its digest, what its rows are, and which cannot be used."""

from collections.abc import Mapping
from pathlib import Path

from loco.contracts.datasets import Format, Inspected, RowProblem, ShownRow
from loco.contracts.files import sha256_of
from loco.datasets.formats import survey
from loco.datasets.rows import Row, Turn

#: Bad rows that are named, good rows that are shown, and characters of a text shown.
PROBLEMS = 20
SHOWN = 5
LONGEST_SHOWN = 2000


def inspect(path: Path, format: Format | None, mapping: Mapping[str, str]) -> Inspected:  # noqa: A002
    """What a file holds.

    Raises:
        DataError: it is broken as a whole, or no row of it can be used.
    """
    found = survey(path, format=format, mapping=mapping, problems=PROBLEMS, first=SHOWN)
    return Inspected(
        sha256=sha256_of(path),
        format=found.format,
        layout=found.layout,
        rows=found.rows,
        bad_rows=found.bad,
        problems=tuple(
            RowProblem(line=p.line, what=_cut(p.what), fix=_cut(p.fix)) for p in found.problems
        ),
        first=tuple(shown(row) for row in found.first),
    )


def shown(row: Row) -> ShownRow:
    """A row to look at."""
    return ShownRow(
        line=row.line,
        messages=tuple(_short(turn) for turn in row.turns[:SHOWN]),
        rejected=_short(row.rejected) if row.rejected else None,
    )


def _short(turn: Turn) -> Turn:
    return {name: _cut(text) for name, text in turn.items()}


def _cut(text: str) -> str:
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
