"""Deletes an ended job: out of the ledger at once, its files behind it, also after a crash."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from loco.contracts.errors import UnsafePath
from loco.contracts.jobs import Job
from loco.contracts.paths import inside
from loco.contracts.removals import Removal
from loco.ledger.ledger import Ledger
from loco.ledger.removals import Leftover
from loco.queue.replay import PLACE
from loco.recipes.frozen import STORE, held

logger = logging.getLogger(__name__)


def look(ledger: Ledger, adapters_dir: Path, job: Job) -> Removal:
    """What would go with a job, and what descends from it; nothing is deleted."""
    removal = _measured(ledger, adapters_dir, job, _leftover(ledger, job))
    return removal.model_copy(update={"needed_by": ledger.removals.needed_by(job)})


def remove(ledger: Ledger, adapters_dir: Path, job: Job) -> Removal:
    """Deletes a job and what nothing else needs of its files.

    Raises:
        Conflict: it has not ended, or something descends from it.
        Busy: jobs come so fast that nobody can tell.
    """
    leftover = _leftover(ledger, job)
    removal = _measured(ledger, adapters_dir, job, leftover)
    ledger.removals.remove(job, removal, leftover)
    return removal.model_copy(update={"cleared": _clear(ledger, adapters_dir, leftover)})


def clear_removed(ledger: Ledger, adapters_dir: Path) -> None:
    """Clears what a deletion that was cut off left."""
    for leftover in ledger.removals.leftovers():
        # a submit may copy gigabytes meanwhile, and the reaper has more to do
        _clear(ledger, adapters_dir, leftover, wait=False)


def _leftover(ledger: Ledger, job: Job) -> Leftover:
    folders = [f"{job.adapter}/runs/{job.id}"]
    # a replay publishes to a folder of its own, unless others of the same job do so too
    place = job.spec.place
    if place.startswith(f"{PLACE}/") and not ledger.removals.replayed_elsewhere(job.id, place):
        folders.append(f"{job.adapter}/{place}")
    inputs = dict.fromkeys(file.path for file in job.spec.inputs.values())
    return Leftover(job.id, tuple(folders), tuple(inputs))


def _measured(ledger: Ledger, adapters_dir: Path, job: Job, leftover: Leftover) -> Removal:
    """Bytes that become free: of files all of whose names go."""
    in_use = ledger.removals.inputs_in_use(but=job.id)
    paths = [p for folder in leftover.folders for p in _files(adapters_dir, folder)]
    if in_use is not None:
        paths += [_input(adapters_dir, name) for name in leftover.inputs if name not in in_use]
    names: dict[tuple[int, int], int] = {}
    size = files = 0
    for path in paths:
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        files += 1
        inode = (found.st_dev, found.st_ino)
        names[inode] = names.get(inode, 0) + 1
        if names[inode] == found.st_nlink:
            size += found.st_size
    return Removal(job_id=job.id, size=size, files=files)


def _files(adapters_dir: Path, folder: str) -> Iterator[Path]:
    for parent, _, names in os.walk(_own(adapters_dir, folder)):
        yield from (Path(parent) / name for name in names)


def _clear(ledger: Ledger, adapters_dir: Path, leftover: Leftover, *, wait: bool = True) -> bool:
    """Deletes the files of a job that is out of the ledger; trouble is logged and tried again."""
    try:
        places = {f: f.partition("/")[2] for f in leftover.folders}
        shared = {f: place for f, place in places.items() if place.startswith(f"{PLACE}/")}
        for folder in places:
            if folder not in shared:
                _delete(_own(adapters_dir, folder))
        # nobody is accepted between the look at who reads an input, or publishes there too, and its end
        with held(adapters_dir, exclusive=True, wait=wait):
            for folder, place in shared.items():
                if not ledger.removals.replayed_elsewhere(leftover.job_id, place):
                    _delete(_own(adapters_dir, folder))
            in_use = ledger.removals.inputs_in_use(but=leftover.job_id)
            if in_use is None:
                logger.warning(
                    "Inputs of deleted job %s stay: the record of another job, which may "
                    "need them, cannot be read.",
                    leftover.job_id,
                )
            for name in leftover.inputs:
                if in_use is not None and name not in in_use:
                    path = _input(adapters_dir, name)
                    path.unlink(missing_ok=True)
                    _drop_empty(path.parent)
    except BlockingIOError:
        return False
    except (OSError, UnsafePath) as error:
        logger.warning("Files of deleted job %s could not be deleted: %s", leftover.job_id, error)
        return False
    ledger.removals.cleared(leftover.job_id)
    return True


def _own(adapters_dir: Path, folder: str) -> Path:
    """The place of a folder that is the job's alone.

    Raises:
        UnsafePath: it leads out of the adapters folder, or is a link to somebody else's.
    """
    place = inside(adapters_dir, folder)
    if (adapters_dir / folder).is_symlink():
        raise UnsafePath(
            f"{folder} is a link to {place}.",
            hint="Its target was not touched. Delete the link.",
        )
    return place


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return  # somebody else deletes it too, or did


def _input(adapters_dir: Path, name: str) -> Path:
    """The place of a frozen input, shown to lie in the store."""
    return inside(adapters_dir / STORE, adapters_dir.resolve() / name)


def _drop_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
