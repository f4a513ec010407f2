"""What every command shares: where the server is, where text goes, and how errors are said.

Results go to standard output and everything about them (progress, notes, errors) to standard
error. Colours appear on terminals only, and never with NO_COLOR.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.table import Table

from loco.client.client import Client
from loco.contracts.errors import LocoError

#: Lines that are not for a terminal are not folded at its width.
_PIPE_WIDTH = 160


@dataclass(frozen=True)
class Target:
    """The server the commands of this run talk to."""

    server: str | None = None
    api_key: str | None = None


def client(context: typer.Context) -> Client:
    """A client of the server named on the command line."""
    target = context.obj if isinstance(context.obj, Target) else Target()
    return Client(target.server, target.api_key)


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
        console.print(renderable)


def note(message: str) -> None:
    """Prints a line about what happens."""
    stderr().print(message, markup=False, highlight=False, soft_wrap=True)


def show_json(value: BaseModel | Iterable[BaseModel] | dict[str, Any] | list[Any]) -> None:
    """Prints one JSON document: models with the API's field names."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def show_error(error: LocoError) -> None:
    """Prints what is wrong and what to do, in two lines."""
    console = stderr()
    for label, style, text in (("error", "bold red", error.message), ("fix", "bold", error.hint)):
        if text:
            console.print(f"[{style}]{label}:[/]", end=" ")
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table with the given headings; those in `right` hold numbers."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=False
        )
    return made


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, emoji=False)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, dict):
        return value
    return [_plain(entry) for entry in value]
