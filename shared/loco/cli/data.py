"""Commands about data sets: `loco data push`, `list`, `show`, `rm`; and rows for `loco submit --data`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from loco.cli.console import client, note, show, show_json, stderr
from loco.cli.listing import Listing
from loco.client.client import Client
from loco.contracts.datasets import DataSet, DataSetDetail, ShownRow
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.figures import size

#: Of a file whose upload takes long enough to be watched.
_LONG_BYTES = 2**20

app = typer.Typer(no_args_is_help=True, help="Your own rows: upload, list, show, delete.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="Name of a column, like --map question=Frage. Repeat for more columns.",
    ),
]
NameArgument = Annotated[str, typer.Argument(metavar="DATASET", help="ID or name of a data set.")]


@app.command()
def push(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, CSV or Parquet.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="Name of the data set. Default: the file's name.")
    ] = None,
    columns: MapOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Upload a file of rows. A broken upload continues where it stopped; the same content is sent once."""
    with client(context) as loco:
        found = pushed(loco, file, name=name, columns=columns, skip_bad=skip_bad)
    if as_json:
        show_json(found)
        return
    show(f"{found.name} ({found.id}): {_in_words(found)}")
    _say_bad(found)
    note(f"Train on it: loco submit ADAPTER --data {found.name}")


@app.command("list")
def list_(context: typer.Context, as_json: JsonOption = False) -> None:
    """List your data sets, newest first. With an admin key: everybody's."""
    with client(context) as loco:
        found = list(loco.datasets())
    if as_json:
        show_json(found)
        return
    rows = Listing(
        *("name", "id", "owner", "format", "layout", "rows", "size", "made"),
        right=("rows", "size"),
        spare=("owner", "made", "format", "layout", "size"),
    )
    for entry in found:
        ready = entry.status == "ready"
        rows.add_row(
            entry.name,
            entry.id,
            entry.owner,
            entry.format or "",
            entry.layout or Text("uploading", style="yellow"),
            f"{entry.rows:,}" if ready else "",
            size(entry.bytes),
            f"{entry.created_at:%Y-%m-%d %H:%M}",
        )
    show(rows) if found else note("No data sets. `loco data push FILE` uploads one.")


@app.command("show")
def show_(context: typer.Context, dataset: NameArgument, as_json: JsonOption = False) -> None:
    """Show a data set and its first rows, as training uses them."""
    with client(context) as loco:
        found = loco.dataset(dataset)
    if as_json:
        show_json(found)
        return
    show(f"{found.name} ({found.id}) of {found.owner}: {_in_words(found)}")
    if found.mapping:
        show("columns: " + ", ".join(f"{f} = {c}" for f, c in found.mapping.items()))
    _say_bad(found)
    for row in found.first:
        show("", *_turns(row, found))


@app.command()
def rm(
    context: typer.Context,
    datasets: Annotated[list[str], typer.Argument(metavar="DATASET...", help="IDs or names.")],
) -> None:
    """Delete data sets. Accepted jobs and pushed adapters keep their own copies."""
    with client(context) as loco:
        for name in datasets:
            gone = loco.delete_dataset(name)
            show(f"Deleted {gone.name} ({gone.id}).")
            note(
                "Accepted jobs and pushed adapters keep their own copies. Only a recipe that says "
                f"`dataset: {gone.name}` needs it again."
            )


def pushed(
    loco: Client,
    file: Path,
    *,
    name: str | None = None,
    columns: list[str] | None = None,
    skip_bad: bool = False,
) -> DataSet:
    """Uploads a file with a bar on standard error, where that is a terminal and the file is long."""
    is_long = file.stat().st_size >= _LONG_BYTES
    bar = Progress(
        TextColumn("uploading {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=stderr(),
        transient=True,
        disable=not (is_long and stderr().is_terminal),
    )
    with bar:
        task = bar.add_task(file.name, total=None)
        return loco.push(
            file,
            name=name,
            mapping=mapping_of(columns or []),
            skip_bad=skip_bad,
            on_progress=lambda sent, total: bar.update(task, completed=sent, total=total),
        )


def rows_for_job(
    loco: Client,
    adapter: str,
    data: str,
    columns: list[str] | None,
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """What `--data` adds to a request: the source, and its rows unless `examples` is set.

    A tenth of them at most stays for validation, as many as the recipe asks for.

    Args:
        loco: the server.
        adapter: whose recipe is trained.
        data: a file here, else ID or name of a data set there.
        columns: FIELD=COLUMN words.
        overrides: the rest of the request.
    """
    prepare = dict(overrides.get("prepare") or {})
    if "source" in prepare:
        raise InvalidRequest(
            "--data and --set prepare.source both choose the rows.",
            param="--data",
            hint="Give only one of them.",
        )
    file = Path(data)
    if file.is_file():
        found = pushed(loco, file, columns=columns)
        source: dict[str, Any] = {"kind": "dataset", "dataset": found.id}
        note(f"{found.name} ({found.id}): {_in_words(found)}")
    else:
        found = _there(loco, data)
        source = {"kind": "dataset", "dataset": found.id}
        if columns:
            source["mapping"] = mapping_of(columns)
    recipe = (loco.adapter(adapter).get("resolved") or {}).get("prepare") or {}
    validation = int(prepare.get("validation", recipe.get("validation", 0)))
    examples = max(1, found.rows - min(validation, found.rows // 10))
    return {**overrides, "prepare": {"examples": examples, **prepare, "source": source}}


def _there(loco: Client, data: str) -> DataSet:
    """A data set of the server; what is none may have been meant as a file here."""
    try:
        return loco.dataset(data)
    except NotFound as error:
        raise NotFound(
            f"No file {data} in {Path.cwd()}, and no data set of that name on {loco.server}.",
            param="--data",
            hint=f"Check the path. {error.hint}",
        ) from error


def mapping_of(pairs: list[str]) -> dict[str, str]:
    """Field to column, of FIELD=COLUMN words.

    Raises:
        InvalidRequest: a word is none.
    """
    mapping = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals or not field.strip() or not column.strip():
            raise InvalidRequest(
                f"--map {pair}: must be FIELD=COLUMN.",
                param="--map",
                hint="Write it like --map question=Frage --map answer=Antwort.",
            )
        mapping[field.strip()] = column.strip()
    return mapping


def _in_words(found: DataSet) -> str:
    if found.status != "ready":
        return f"uploading, {size(found.bytes)} so far"
    words = (
        f"{found.rows:,} rows of {found.layout}, {str(found.format).upper()}, {size(found.bytes)}"
    )
    return f"{words}, sha256 {(found.sha256 or '')[:12]}"


def _say_bad(found: DataSet) -> None:
    if found.bad_rows:
        note(f"{found.bad_rows:,} rows cannot be used and are left out:")
    unit = found.format.unit if found.format else "line"
    for problem in found.problems:
        note(f"  {unit} {problem.line}: {problem.what}. {problem.fix}")


def _turns(row: ShownRow, found: DataSetDetail) -> list[Text]:
    unit = found.format.unit if found.format else "line"
    shown = [Text(f"{unit} {row.line}", style="dim")]
    turns = [*row.messages, *([{**row.rejected, "role": "rejected"}] if row.rejected else [])]
    shown += [Text(f"{t['role']}: ", style="bold") + Text(t["content"]) for t in turns]
    return shown
