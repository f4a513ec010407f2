"""`loco adapters`: what can be built; push a recipe from here to the server, pull one from there."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from loco.cli import completion
from loco.cli.base_models import servers_base_models
from loco.cli.console import client, note, show, show_json
from loco.cli.data import pushed
from loco.cli.listing import Listing
from loco.client.client import Client
from loco.contracts.errors import (
    AdapterInUse,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    UnknownAdapter,
)
from loco.contracts.figures import size
from loco.contracts.files import write_text
from loco.contracts.recipes import FILE_PATTERN, RecipeText
from loco.contracts.release import release
from loco.contracts.removals import way_out
from loco.datasets.names import name_of
from loco.drafting import checks, folders
from loco.drafting.draft import check_name, place_of
from loco.recipes.resolve import RECIPE

app = typer.Typer(help="List the adapters that jobs can build; push, pull and delete them.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the adapter.")]

#: What was last pushed to or pulled from which server: address to ETag.
_KNOWN = ".pushed.json"


@app.callback(invoke_without_command=True)
def adapters(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the adapters that jobs can build; push and pull recipes."""
    if context.invoked_subcommand is None:
        listed(context, as_json)


@app.command("list")
def listed(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the adapters that jobs can build, as `loco adapters` does."""
    with client(context) as loco:
        found = loco.adapters()
    if as_json:
        show_json(found)
        return
    rows = Listing(
        *("adapter", "profiles", "base model", "model", "good at"),
        spare=("model", "profiles"),
        below="good at",
    )
    for adapter in found:
        error = adapter.get("error")
        rows.add_row(
            str(adapter["name"]),
            ", ".join(adapter.get("profiles", [])),
            adapter.get("base_model") or "",
            adapter.get("model_name") or "",
            Text(error["message"], style="red") if error else adapter.get("description") or "",
        )
    show(rows) if found else note(
        "No adapters yet. Draft one with `loco new NAME --data rows.csv`, then send it with "
        "`loco adapters push`."
    )


@app.command()
def push(
    context: typer.Context,
    name: NameArgument,
    *,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of the adapter. Default: ./adapters/NAME or ./NAME."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the server's recipe even if it is newer.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a recipe and the data files it names to the server. Needs an admin key."""
    folder = source or place_of(name, Path.cwd())
    with client(context) as loco:
        before = _version_of(loco, name)
        found = sent(loco, name, folder, force=force)
    unchanged = found.version is not None and found.version == before
    if as_json:
        show_json(found)
        return
    files = ", ".join(found.files) or "no files"
    if unchanged:
        show(f"{name} on {loco.server} is unchanged: recipe {found.version} with {files}.")
    else:
        show(f"{name} is on {loco.server}: recipe {found.version} with {files}.")
    note(f"Build it with `loco submit {name} --wait`. Add --profile tiny to rehearse first.")


@app.command()
def pull(
    context: typer.Context,
    name: NameArgument,
    *,
    to: Annotated[
        Path | None, typer.Option(help="Folder to write to. Default: ./adapters/NAME or ./NAME.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files that are already here.")
    ] = False,
) -> None:
    """Bring a recipe and the data files it names from the server."""
    check_name(name)
    folder = to or place_of(name, Path.cwd())
    if (folder / RECIPE).exists() and not force:
        raise Conflict(
            f"{folder / RECIPE} already exists.",
            param="--to",
            hint="Pull into another folder (--to DIR), or overwrite it with --force.",
        )
    with client(context) as loco:
        found = loco.recipe(name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in found.files:
            loco.recipe_file(name, _checked(file), folder / file)
            show(f"{folder / file}")
        write_text(folder / RECIPE, found.recipe)
        _remember(folder, loco, found)
    show(f"{folder / RECIPE}")


@app.command("rm")
def remove(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of the adapter.", autocompletion=completion.adapters)
    ],
    *,
    everything: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Delete its versions, also the one that serves, and its jobs first. Not while a job "
            "runs.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete an adapter from the server: its recipe, data files and outputs. Needs an admin key."""
    with client(context) as loco:
        try:
            gone = loco.remove_adapter(name)
        except AdapterInUse:  # so it may be deleted, but for what is left
            if not everything:
                raise
            _remove_built(loco, name)
            gone = loco.remove_adapter(name)
    if as_json:
        show_json(gone)
        return
    show(f"{name} is deleted from {loco.server}: {size(gone.size)} in {gone.files} files freed.")
    if gone.kept:
        note(f"These were not pushed and stay in its folder: {', '.join(gone.kept)}.")


def _remove_built(loco: Client, name: str) -> None:
    """Deletes the versions of an adapter, then its jobs, each before those it needs.

    Raises:
        Conflict: a job has not ended, or something else needs one; nothing is deleted then.
    """
    jobs = list(loco.jobs(adapter=name))
    ids = {job.id for job in jobs}
    if running := [job.id for job in jobs if not job.status.is_terminal]:
        raise Conflict(
            f"Adapter {name} cannot be deleted while job {running[0]} is not over.",
            param="name",
            hint=f"Wait until it ends, or end it: `loco cancel {running[0]}`.",
        )
    for job in jobs:
        needed_by = (w for w in loco.removal(job.id).needed_by if not w.startswith("version "))
        # jobs of other adapters, and sweeps that have not ended
        if others := tuple(words for words in needed_by if words.split()[1] not in ids):
            raise Conflict(
                f"Adapter {name} cannot be deleted: job {job.id} is needed by {', '.join(others)}.",
                param="name",
                hint=way_out(job.id, others),
            )
    with suppress(UnknownAdapter):
        for version in sorted(loco.versions(name), key=lambda v: v.promoted):
            loco.remove_version(name, version.version, force=version.promoted)
            note(f"Version {version.version} of {name} is deleted.")
    left = [job.id for job in jobs]
    while left:
        free = [job_id for job_id in left if not loco.removal(job_id).needed_by]
        going = free or left[:1]  # where none is free, the server says why
        for job_id in going:
            loco.remove(job_id)
            note(f"Job {job_id} is deleted.")
        left = [job_id for job_id in left if job_id not in going]


def _version_of(loco: Client, name: str) -> int | None:
    """Number of the recipe on the server; None: there is none that can be read."""
    with suppress(NotFound, InvalidRequest):
        return loco.recipe(name).version
    return None


@contextmanager
def pushed_first(name: str) -> Iterator[None]:
    """Where the server has no such adapter and its recipe lies here, says to push it."""
    try:
        yield
    except UnknownAdapter as error:
        folder = place_of(name, Path.cwd())
        if not (folder / RECIPE).is_file():
            raise
        raise UnknownAdapter(
            error.message,
            param=error.param,
            hint=f"Its recipe is here ({folder / RECIPE}). Push it first: `loco adapters push "
            f"{name}`.",
        ) from error


def sent(loco: Client, name: str, folder: Path, *, force: bool = False) -> RecipeText:
    """Looks at a recipe, uploads its data files, then puts it."""
    text = folders.recipe_of(folder, name)
    files = folders.files_of(folder, text)
    known = None if force else _known(folder, loco)
    with suppress(NotFound):
        now = loco.recipe(name)
        if not force and known != now.etag:
            raise Conflict(
                f"Adapter {name!r} on {loco.server} has a newer recipe than this folder.",
                param="name",
                hint=f"Look at it with `loco adapters pull {name} --to DIR`. Then push with "
                "--force, or choose another name.",
            )
        known = now.etag
    _check_fields(loco, folder, name, text)
    try:
        uploaded = {
            file: pushed(loco, path, name=name_of(Path(f"{name}-{file}"))).id
            for file, path in files.items()
        }
        found = loco.put_adapter(name, text, files=uploaded, if_match=known)
    except Forbidden as error:
        raise Forbidden(
            f"You need an admin key to put a recipe on {loco.server}. {error.message}",
            param=error.param,
            hint="Ask the person who runs the server to make one (`loco keys create NAME --scope "
            "admin`), or to push the recipe.",
        ) from error
    _remember(folder, loco, found)
    return found


def _check_fields(loco: Client, folder: Path, name: str, text: str) -> None:
    """Refuses a recipe that the server would refuse, before its files are uploaded."""
    with servers_base_models(loco) as catalog:
        if catalog is None:
            return
        fault = checks.fault_in(folder, name, text, catalog)
    # a server of another release may know other fields: it says itself what is wrong
    if fault is not None and loco.version().get("version") == release():
        raise fault


def _checked(file: str) -> str:
    """A server may name no file that lies elsewhere."""
    if re.fullmatch(FILE_PATTERN, file) is None or file == RECIPE:
        raise InvalidRequest(
            f"The server names a data file {file!r:.200}, which is not a safe name. The file "
            "was not written."
        )
    return file


def _known(folder: Path, loco: Client) -> str | None:
    try:
        known = json.loads((folder / _KNOWN).read_text())
        return str(known[loco.server])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(folder: Path, loco: Client, found: RecipeText) -> None:
    known = {}
    with suppress(OSError, ValueError):
        known = dict(json.loads((folder / _KNOWN).read_text()))
    write_text(folder / _KNOWN, json.dumps({**known, loco.server: found.etag}, indent=2) + "\n")
