"""`loco new`: the recipe of a task of one's own, from rows.

loco new units --data rows.csv
loco new units --data rows.csv --map question=Frage --map answer=Antwort
"""

from pathlib import Path
from typing import Annotated

import typer

from loco.cli.adapters import sent
from loco.cli.base_models import base_models, check_base, servers_base_models
from loco.cli.console import Target, note, show
from loco.cli.data import MapOption, mapping_of
from loco.client.client import Client
from loco.contracts.errors import Conflict
from loco.drafting import draft, rows
from loco.drafting.draft import Draft
from loco.recipes.resolve import RECIPE
from loco.settings import Settings

DataOption = Annotated[
    Path,
    typer.Option(
        "--data", help="Your rows, each a question and its answer: JSONL, CSV or Parquet."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(new)


def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of your adapter, like `units`.")],
    data: DataOption,
    *,
    base: Annotated[
        str, typer.Option(help="The base model to train, see `loco bases`.")
    ] = draft.DEFAULT_BASE,
    columns: MapOption = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for the split into training and eval rows.")
    ] = 0,
) -> None:
    """Write the recipe of a new adapter from your own rows, and set some rows aside as its eval set."""
    folder = draft.place_of(name, Path.cwd())
    with base_models(context, Settings.from_environment()) as (catalog, unasked):
        if catalog is not None:
            check_base(catalog, base, "--base")
    if unasked is not None and isinstance(context.obj, Target) and context.obj.server:
        note(f"The server was not asked whether it has {base}: {unasked.message}")
    written = drafted(folder, name, data, base=base, columns=columns or [], seed=seed)
    tell(written)
    note(
        f"Next: `loco check {name}`, then `loco adapters push {name}` and `loco submit {name} --wait`."
    )
    again = f"Fix {data.name}, delete the folder {_from_here(folder)} and run `loco new` again."
    tell_left_out(written, again)


def drafted(
    folder: Path, name: str, data: Path, *, base: str, columns: list[str], seed: int
) -> Draft:
    """Reads rows, divides them and writes the adapter's folder."""
    found = rows.divided(data, mapping=mapping_of(columns), seed=seed)
    return draft.write(folder, name, found, base=base, seed=seed)


def made_for_job(
    loco: Client, name: str, data: str, columns: list[str] | None, base: str | None
) -> bool:
    """Drafts and pushes the adapter that `loco submit NAME --data FILE` names, where there is none.

    Returns:
        Whether there was none, and there is now; its recipe names the rows.
    """
    if name in (adapter["name"] for adapter in loco.adapters()):
        return False
    folder, file = draft.place_of(name, Path.cwd()), Path(data)
    if (folder / RECIPE).is_file():
        raise Conflict(
            f"Adapter {name!r} is not on {loco.server}, but there is a recipe in {folder}.",
            param="--data",
            hint=f"Run `loco adapters push {name}`, then `loco submit {name}` without --data.",
        )
    if not file.is_file():
        return False  # the server says which adapters there are
    with servers_base_models(loco) as catalog:
        if catalog is not None:
            check_base(catalog, base or draft.DEFAULT_BASE, "--base-model")
    note(f"There is no adapter {name!r} yet. Drafting one from {file.name}.")
    written = drafted(
        folder, name, file, base=base or draft.DEFAULT_BASE, columns=columns or [], seed=0
    )
    tell(written)
    sent(loco, name, folder)
    note(f"{name} is on {loco.server}; its recipe is {folder / RECIPE}.")
    there = _from_here(folder)
    tell_left_out(
        written,
        f"Add them, fixed, to {there / draft.ROWS} and raise prepare.examples in {there / RECIPE}. "
        "Then push and submit again.",
    )
    return True


def tell(written: Draft) -> None:
    """Says what was written; `tell_left_out` says the rest."""
    found, folder = written.divided, _from_here(written.folder)
    show(
        f"{folder / draft.ROWS}: {len(found.training)} rows to learn from",
        f"{folder / draft.PROBLEMS}: {len(found.problems)} problems to measure with; "
        "training never sees them",
        f"{folder / RECIPE}: the recipe, on {written.base}; profile `tiny` runs on a CPU",
    )
    note(f"Grader `{found.picked.kind}`: {found.picked.why}.")
    if found.picked.advice:
        note(found.picked.advice)
    if written.shows is None:
        note(f"{len(found.problems)} problems are too few to prove anything. Add more rows.")
    else:
        note(
            f"{len(found.problems)} problems can show a gain of {100 * written.shows:.0f} "
            "points or more. To show a smaller gain, add more rows."
        )


def tell_left_out(written: Draft, fix: str) -> None:
    """Says which rows are in neither part and why; the last words of a command, where they are seen.

    Args:
        written: the draft.
        fix: how rows that cannot be used come in after all.
    """
    found = written.divided
    if found.duplicates:
        note(f"Left out: {_rows(found.duplicates)} repeating a question.")
    if found.overlaps:
        note(f"Left out: {_rows(found.overlaps)} nearly the same as a problem.")
    if not found.bad_count:
        return
    note(f"Left out: {_rows(found.bad_count)} that cannot be used:")
    for problem in found.bad:
        note(f"  {problem}")
    if (more := found.bad_count - len(found.bad)) > 0:
        note(f"  … and {more:,} more")
    note(f"Do you need them? {fix}")


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _from_here(folder: Path) -> Path:
    """The folder as one types it here; as it is where it lies elsewhere."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder
