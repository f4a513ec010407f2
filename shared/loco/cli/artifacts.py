"""`loco artifacts`: the files of a job, listed or downloaded.

loco artifacts last 'gguf/*' --download here
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import typer

from loco.cli import completion
from loco.cli.console import client, note, show, show_json
from loco.cli.jobs import JobArgument, JsonOption
from loco.cli.listing import Listing
from loco.contracts.artifacts import Artifact
from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.figures import size


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(artifacts)


def artifacts(
    context: typer.Context,
    job_id: JobArgument,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Only these: NAME, STAGE/NAME, a pattern ('gguf/*'), or a STAGE for all its "
            "files.",
            autocompletion=completion.artifacts,
        ),
    ] = None,
    download: Annotated[
        Path | None,
        typer.Option(file_okay=False, metavar="DIR", help="Save them as DIR/STAGE/NAME."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the files a job read and made, or download them. A broken download continues where it stopped."""
    with client(context) as loco:
        job_id = loco.job_id(job_id)
        found = _named(loco.artifacts(job_id), names or [], job_id)
        for artifact in found if download else ():
            note(f"{artifact.full_name} {size(artifact.size)}")
            target = _below(download or Path(), artifact)
            target.parent.mkdir(parents=True, exist_ok=True)
            loco.download(job_id, artifact.full_name, target)
    if as_json:
        show_json(found)
    elif not found:
        note("This job has no files yet: it keeps no inputs, and no stage has finished.")
    elif download:
        show(f"Saved in {download}: {_count(found)}, {size(sum(a.size for a in found))}.")
    else:
        show(_listing(found))


def _count(found: list[Artifact]) -> str:
    return "1 file" if len(found) == 1 else f"{len(found)} files"


def _listing(found: list[Artifact]) -> Listing:
    # a hash that has no room beside its file is left out: below it, it would double every row
    rows = Listing("artifact", "size", "sha256", right=("size",), spare=("sha256",))
    for artifact in found:
        rows.add_row(artifact.full_name, size(artifact.size), artifact.sha256)
    return rows


def _named(found: tuple[Artifact, ...], names: list[str], job_id: str) -> list[Artifact]:
    def fits(artifact: Artifact, name: str) -> bool:
        exact = name in (artifact.name, artifact.full_name, artifact.folder)
        return exact or any(fnmatchcase(n, name) for n in (artifact.name, artifact.full_name))

    for name in names:
        if not any(fits(artifact, name) for artifact in found):
            raise NotFound(
                f"Job {job_id} has no artifact {name!r}.",
                param="name",
                hint=f"`loco artifacts {job_id}` lists what it has.",
            )
    return [a for a in found if not names or any(fits(a, name) for name in names)]


def _below(folder: Path, artifact: Artifact) -> Path:
    """Where an artifact goes: never outside the folder, whatever a server calls it."""
    try:
        target = (folder / artifact.folder / artifact.name).resolve()
        if target.is_relative_to(folder.resolve() / artifact.folder):
            return target
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, a NUL
        pass
    raise InvalidRequest(
        f"The server names an artifact {artifact.name!r:.200}, which is not a safe name. The "
        "file was not written."
    )
