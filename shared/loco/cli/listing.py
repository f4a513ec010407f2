"""Lists that stay readable at any width: what people read or copy is never folded.

Where a terminal is too narrow, one column (`below`) goes on a line of its own under each row; where
that is not enough, columns are left out in the order of `spare`, and a line says which. What is not a
terminal gets everything, a line a row.
"""

from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loco.contracts.printable import one_line

#: Between two columns.
_GAP = 2


class Listing:
    """Rows under headings, drawn for the width there is."""

    def __init__(
        self,
        *columns: str,
        right: Iterable[str] = (),
        spare: Sequence[str] = (),
        below: str | None = None,
    ) -> None:
        """Makes an empty one.

        Args:
            columns: the headings.
            right: those that hold numbers.
            spare: those that may be left out, the first one first.
            below: the one that may go under its row.
        """
        self._columns = columns
        self._right = frozenset(right)
        self._spare = tuple(columns.index(name) for name in spare)
        self._below = None if below is None else columns.index(below)
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Adds a row, a cell a column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append(tuple(_plain(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The list at the width of a terminal, or as wide as it is."""
        every, under = range(len(self._columns)), False
        shown = list(every)
        if console.is_terminal and self._width(every) > options.max_width:
            shown, under = self._fitted(options.max_width)
        if under and self._below is not None:
            yield from self._rows_with_lines(shown, self._below)
        else:
            # a terminal folds what nothing could be left out of
            wide = max(self._width(shown), options.max_width)
            yield from console.render(self._table(shown, self._rows), options.update(width=wide))
        gone = [n for n in every if n not in shown and not (under and n == self._below)]
        if missed := [self._columns[n] for n in gone if self._holds(n)]:
            told = f"Left out on so narrow a terminal: {', '.join(missed)}."
            yield Text(told, style="dim")

    def _fitted(self, width: int) -> tuple[list[int], bool]:
        """The columns beside each other that a width has room for; whether one goes under its row."""
        # a heading that nothing stands under is no loss
        full = [n for n in range(len(self._columns)) if self._holds(n)]
        # two columns less are better than a line more
        for gone in range(3):
            kept = [n for n in full if n not in self._spare[:gone]]
            if self._width(kept) <= width:
                return kept, False
        under = self._below in full
        beside = [n for n in full if n != self._below]
        for gone in range(len(self._spare) + 1):
            kept = [n for n in beside if n not in self._spare[:gone]]
            if self._width(kept) <= width:
                break
        return kept, under

    def _holds(self, column: int) -> bool:
        return any(row[column].plain for row in self._rows)

    def _width(self, columns: Sequence[int]) -> int:
        """How wide columns are beside each other."""
        return sum(self._widest(n) for n in columns) + _GAP * max(len(columns) - 1, 0)

    def _widest(self, column: int) -> int:
        cells = [row[column].cell_len for row in self._rows]
        return max([cell_len(self._columns[column]), *cells])

    def _rows_with_lines(
        self, shown: Sequence[int], below: int
    ) -> Iterator[Table | Text | Padding]:
        yield self._table(shown, ())
        yield Text(f"  {self._columns[below]}", style="bold")
        for row in self._rows:
            yield self._table(shown, (row,), header=False)
            if row[below].plain:
                yield Padding(row[below], (0, 0, 0, 2))

    def _table(
        self, columns: Sequence[int], rows: Iterable[tuple[Text, ...]], *, header: bool = True
    ) -> Table:
        made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=header)
        made.header_style = "bold"
        for n in columns:
            name = self._columns[n]
            made.add_column(
                name,
                width=self._widest(n),
                no_wrap=True,
                justify="right" if name in self._right else "left",
            )
        for row in rows:
            made.add_row(*(row[n] for n in columns))
        return made


def _plain(cell: str | Text) -> Text:
    """A cell on one line, with its colour."""
    style = cell.style if isinstance(cell, Text) else ""
    return Text(one_line(str(cell)), style=style)
