"""What every command shares: where the server is, where text goes, and how errors are said.

Results go to standard output and everything about them (progress, notes, errors) to standard
error. Colours appear on terminals only, and never with NO_COLOR. What others wrote (rows, answers,
log lines, descriptions) cannot colour it or move the cursor: markup is plain text, and control
characters are written out.
"""

import json
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from loco.client.client import Client
from loco.contracts.errors import InvalidRequest, LocoError
from loco.contracts.printable import json_printable, printable

#: Lines that are not for a terminal are not folded at its width.
_PIPE_WIDTH = 160
#: Columns from which a screen has room for everything.
_WIDE = 110


@dataclass(frozen=True)
class Target:
    """The server the commands of this run talk to."""

    server: str | None = None
    api_key: str | None = None


def client(context: typer.Context) -> Client:
    """A client of the server named on the command line."""
    target = context.obj if isinstance(context.obj, Target) else Target()
    return Client(target.server, target.api_key)


class PlainConsole(Console):
    """A console on which only our own styles reach the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """The segments of anything printed, with the control characters of its text written out."""
        for segment in super().render(renderable, options):
            ours = segment.control is not None
            yield segment if ours else segment._replace(text=printable(segment.text))


def stdout() -> Console:
    """Where results go."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where notes, progress and errors go."""
    return _console(stderr=True)


def show(*renderables: RenderableType) -> None:
    """Prints results."""
    console = stdout()
    for renderable in renderables:
        console.print(renderable, crop=False)


def note(message: str) -> None:
    """Prints a line about what happens."""
    stderr().print(message, soft_wrap=True)


def show_json(value: BaseModel | Iterable[BaseModel] | dict[str, Any] | list[Any]) -> None:
    """Prints one JSON document: models with the API's field names."""
    document = json.dumps(_plain(value), indent=2, ensure_ascii=False)
    sys.stdout.write(json_printable(document) + "\n")


def show_error(error: LocoError) -> None:
    """Prints what is wrong and what to do, in two lines."""
    console = stderr()
    for label, style, text in (("error", "bold red", error.message), ("fix", "bold", error.hint)):
        if text:
            console.print(Text(f"{label}:", style=style), text, soft_wrap=True)


def on_the_server() -> LocoError:
    """What a command says where only the client is installed, and it needs the rest."""
    return InvalidRequest(
        "This is the client alone; this command needs the whole of locollm.",
        hint="Run it on the server's machine.",
    )


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table with the given headings; those in `right` hold numbers."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=False
        )
    return made


def listing(
    columns: Sequence[str],
    lines: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    whole: Container[str] = (),
    spare: Container[str] = (),
) -> Table:
    """A table of these lines for standard output.

    Args:
        columns: the headings.
        lines: a cell each.
        right: columns of numbers.
        whole: columns that are never folded, as people copy what they hold.
        spare: columns that a narrow screen leaves out, so that the others keep their lines.
    """
    narrow = stdout().width < _WIDE
    kept = [n for n, column in enumerate(columns) if not (narrow and column in spare)]
    made = table(*(columns[n] for n in kept), right=right)
    for column in made.columns:
        column.no_wrap = str(column.header) in whole
    for line in lines:
        made.add_row(*(line[n] for n in kept))
    return made


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return PlainConsole(file=stream, width=width)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return value
    return [_plain(entry) for entry in value]
