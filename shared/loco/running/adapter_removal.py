"""Deletes an adapter of which no version and no job is left: its recipe, its data files, what jobs published.

The recipe goes first: from then on there is no such adapter. `.recipes` goes last: while it is there, a
deletion that was cut off can be asked for again.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from loco.contracts.errors import AdapterInUse, Conflict, UnknownAdapter, UnsafePath
from loco.contracts.files import PUBLISH_LOCK, sync_folder
from loco.contracts.paths import inside
from loco.contracts.recipes import FILE_PATTERN
from loco.contracts.removals import AdapterRemoval
from loco.drafting.shelf import INCOMING, PUBLISHED, kept_recipes
from loco.ledger.ledger import Ledger
from loco.recipes.frozen import held
from loco.recipes.plain import MADE_BY
from loco.recipes.resolve import RECIPE
from loco.recipes.swap import KEPT, unchanging, writable

#: Versions and jobs that an error names.
_NAMED = 10


def remove_adapter(ledger: Ledger, adapters_dir: Path, name: str) -> AdapterRemoval:
    """Deletes an adapter that was pushed to this server.

    Args:
        ledger: knows its versions and jobs.
        adapters_dir: holds it.
        name: of the adapter.

    Raises:
        UnknownAdapter: there is none.
        AdapterInUse: versions or jobs of it are left.
        Conflict: its recipe was put into the folder by hand.
        UnsafePath: its folder leads out of the adapters folder.
        LocoError: the server may not write there.
    """
    inside(adapters_dir, name)
    folder = adapters_dir / name
    if folder.is_symlink():
        raise UnsafePath(
            f"The folder of adapter {name} is a link to another folder, whose files are not its own.",
            param="name",
            hint=f"Delete the link {folder} on the server's machine.",
        )
    # nobody is accepted between the look at what is left and the end of the recipe
    with writable(adapters_dir), held(adapters_dir, exclusive=True), unchanging(folder):
        _check_made_here(folder)
        _check_nothing_left(ledger, name)
        names = {file for recipe in kept_recipes(folder) for file in recipe.files}
        (folder / RECIPE).unlink(missing_ok=True)
        sync_folder(folder)
        gone = [folder / file for file in sorted(names) if re.fullmatch(FILE_PATTERN, file)]
        gone += [folder / file for file in (*sorted(PUBLISHED - {"runs"}), PUBLISH_LOCK, MADE_BY)]
        sizes = [size for place in gone for size in _delete(place)]
        _drop_empty(folder / "runs")
        if (folder / KEPT).is_dir():
            aside = adapters_dir / INCOMING / uuid4().hex
            aside.parent.mkdir(exist_ok=True)
            (folder / KEPT).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        kept = tuple(sorted(place.name for place in folder.iterdir()))
        _drop_empty(folder)
    return AdapterRemoval(name=name, size=sum(sizes), files=len(sizes) + 1, kept=kept)


def _check_made_here(folder: Path) -> None:
    """Refuses a recipe that came with the installation, or that somebody wrote there."""
    if (folder / RECIPE).is_file():
        if kept_recipes(folder) or (folder / MADE_BY).is_file():
            return
        raise Conflict(
            f"The recipe of {folder.name} was not pushed to this server: it was put into its adapters "
            "folder by hand, or came with locollm.",
            param="name",
            hint=f"Delete the folder {folder} on the server's machine.",
        )
    if not (folder / KEPT).is_dir() and not (folder / MADE_BY).is_file():
        raise _unknown(folder.name)


def _check_nothing_left(ledger: Ledger, name: str) -> None:
    versions, more = ledger.registry.versions(name, limit=_NAMED)
    page = ledger.page(adapter=name, limit=_NAMED)
    jobs = [job.id for job in page.jobs]
    if not versions and not jobs and not page.unreadable:
        return
    left, steps = [], []
    if versions:
        numbers = [str(v.version) for v in versions]
        left.append(f"version{'s' if len(numbers) > 1 else ''} {_listed(numbers, more)}")
        # what serves comes last, and needs force only then
        for version in sorted(versions, key=lambda v: v.promoted):
            force = " --force" if version.promoted else ""
            steps.append(f"`loco rm {name} --version {version.version}{force}`")
    if running := [job.id for job in page.jobs if not job.status.is_terminal]:
        steps[:0] = [f"`loco cancel {job_id}`" for job_id in running]
    if jobs or page.unreadable:
        ids = [*jobs, *(job.id for job in page.unreadable)]
        left.append(f"job{'s' if len(ids) > 1 else ''} {_listed(ids, page.more)}")
        steps.append(f"`loco rm {' '.join(ids)}`")
    raise AdapterInUse(
        f"Adapter {name} cannot be deleted. It still has {' and '.join(left)}.",
        param="name",
        hint=f"Delete them first: {', then '.join(steps)}. `loco adapters rm {name} --all` does all "
        "of this, unless a job runs.",
    )


def _listed(names: list[str], more: bool) -> str:
    return ", ".join(names) + (" and more" if more else "")


def _delete(place: Path) -> Iterator[int]:
    """Deletes a file or a folder; the bytes of each file that became free."""
    if place.is_dir() and not place.is_symlink():
        for parent, _, names in os.walk(place):
            yield from (_freed(Path(parent) / name) for name in names)
        shutil.rmtree(place)
    elif place.is_symlink() or place.exists():
        yield _freed(place)
        place.unlink()


def _freed(file: Path) -> int:
    found = file.lstat()
    return found.st_size if found.st_nlink == 1 else 0


def _drop_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _unknown(name: str) -> UnknownAdapter:
    return UnknownAdapter(
        f"No adapter {name!r}.", param="name", hint="`loco adapters` lists the adapters."
    )
