"""`loco check`: recipe, rows and eval set before any GPU time, and ten rows as the model will see them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from loco.cli.base_models import base_models
from loco.cli.console import client, note, show, stdout
from loco.contracts.errors import LocoError
from loco.contracts.looks import Look, LookedAt
from loco.contracts.requests import DEFAULT_PROFILE
from loco.drafting import checks, looking
from loco.drafting.checks import Checked
from loco.drafting.draft import place_of
from loco.settings import Settings

_TRAINED = "bold green"


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(check)


def check(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    *,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of the adapter. Default: ./adapters/NAME or ./NAME."),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="Profile of the recipe.")
    ] = DEFAULT_PROFILE,
) -> int:
    """Check recipe, rows and eval set, and show rows as the model will see them. Exit code 1: problems found."""
    settings = Settings.from_environment()
    with base_models(context, settings) as (catalog, unasked):
        found = checks.check(source or place_of(name, Path.cwd()), name, profile, catalog=catalog)
    if found.spec is None and unasked is not None:
        found.notes.append(f"The server was not asked for its base models: {unasked.message}")
    seen, unseen = _look(context, found, settings)
    if seen is not None:
        _show_rows(seen)
        _count(found, seen)
    for problem in found.problems:
        show(Text.assemble(("problem  ", "bold red"), problem))
    for words in found.notes:
        show(Text.assemble(("note     ", "yellow"), words))
    if unseen is not None:
        show(Text.assemble(("note     ", "yellow"), f"Tokens were not checked. {unseen.message}"))
        if unseen.hint:
            note(f"         {unseen.hint}")
    note(
        f"{len(found.rows)} rows can be used for training, {found.items} questions measure the "
        f"result; {len(found.problems) or 'nothing'} to fix."
    )
    return 1 if found.problems else 0


def _look(
    context: typer.Context, found: Checked, settings: Settings
) -> tuple[Look | None, LocoError | None]:
    """The rows as the training environment of this machine sees them, else as the server's does."""
    request = checks.request_of(found)
    if request is None or found.spec is None:
        return None, None
    try:
        if settings.train_python.is_file():
            return looking.look_at(settings, found.spec.train.base_model, request), None
        with client(context) as loco:
            return loco.look(request), None
    except LocoError as error:  # told below: the rest of the check stands without
        return None, error


def _show_rows(seen: Look) -> None:
    marks = not stdout().is_terminal
    for row in seen.rows:
        if not row.pieces:
            continue
        line = Text(f"line {row.line}: {row.tokens} tokens, {row.trained} trained\n", style="dim")
        for piece in row.pieces:
            text = f"[{piece.text}]" if piece.trained and marks else piece.text
            line.append(text, style=_TRAINED if piece.trained else "not dim")
        show(line, "")


def _count(found: Checked, seen: Look) -> None:
    def lines(rows: list[LookedAt]) -> str:
        named = ", ".join(str(row.line) for row in rows[: checks.LISTED])
        return named + (", …" if len(rows) > checks.LISTED else "")

    rows = seen.rows
    assert found.spec is not None
    longest = found.spec.train.max_length
    for row in rows:
        if row.problem is not None:
            found.problems.append(f"line {row.line}: {row.problem}")
    for words, which in (
        ("are cut off inside the answer", [row for row in rows if row.cut]),
        (
            "are left out, because the answer begins after that",
            [row for row in rows if row.dropped],
        ),
    ):
        if which:
            share = 100 * len(which) / len(rows)
            found.problems.append(
                f"train.max_length is {longest}: {len(which)} of {len(rows)} rows ({share:.0f} %) "
                f"{words} (lines {lines(which)}). Raise it, or shorten the rows."
            )
    show(
        f"{seen.base_model}: {len(rows)} rows looked at, longest {max(r.tokens for r in rows)} tokens, "
        f"{sum(r.trained for r in rows)} tokens trained."
    )
