"""Publishing: a committed stage's files appear at the adapter's well-known places, whole or not at all.

    adapters/NAME/training_data.jsonl   checkpoints/   gguf/unsloth.Q4_K_M.gguf   Modelfile

They are hard links to the committed attempt's files, so they cost no disk. `.publish.lock` keeps
two publishers apart and remembers what was published, so that a late publisher of an older job
never replaces a newer job's files.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from loco.contracts.artifacts import Artifact
from loco.contracts.files import PUBLISH_LOCK, sync_folder
from loco.contracts.jobs import Task

#: Artifacts that appear beside the recipe: files, and folders (with a slash).
FILES = ("training_data.jsonl", "gguf/", "Modelfile")
#: Folders that are replaced as a whole, because their files belong together.
FOLDERS = ("checkpoints",)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def publish(adapters_dir: Path, adapter: str, task: Task) -> bool:
    """Puts a committed task's well-known files in their places.

    Returns:
        False when a newer job has already published this stage.

    Raises:
        OSError: a file is gone or the disk is full; nothing half-written is left.
    """
    folder = adapters_dir / adapter
    finished = task.finished_at.isoformat() if task.finished_at else ""
    with _locked(folder / PUBLISH_LOCK) as record:
        published = _read(record)
        newest = published.get(task.stage, {}).get("finished_at", "")
        if newest and finished and _instant(newest) > _instant(finished):
            return False
        for artifact in task.artifacts:
            if artifact.name.startswith(FILES):
                _replace_file(folder / artifact.name, adapters_dir / artifact.path)
        for name in FOLDERS:
            members = [a for a in task.artifacts if a.name.startswith(f"{name}/")]
            if members:
                _replace_folder(folder, name, adapters_dir, members)
        published[task.stage] = {"task_id": task.task_id, "finished_at": finished}
        _write(record, published)
    return True


def _replace_file(place: Path, source: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        _link(source, temporary)
        # rename() does nothing when both names are links to one file, and leaves the temporary
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(place.parent)


def _replace_folder(
    folder: Path, name: str, adapters_dir: Path, members: Sequence[Artifact]
) -> None:
    fresh = folder / f".{name}.{os.getpid()}.part"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for artifact in members:
            target = fresh / artifact.name.removeprefix(f"{name}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(adapters_dir / artifact.path, target)
        sync_folder(fresh)
        _swap(fresh, folder / name)
        sync_folder(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # now the old content


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(fresh: Path, place: Path) -> None:
    """Puts the folder `fresh` at `place`; the old one, if any, ends up at `fresh`."""
    if not place.exists():
        fresh.rename(place)
        return
    if sys.platform == "linux" and _exchange(fresh, place):
        return
    # no atomic exchange here: for a moment there is no folder, but never a half one
    aside = fresh.with_suffix(".old")
    place.rename(aside)
    fresh.rename(place)
    aside.rename(fresh)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two paths in one step (renameat2); False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    answer = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if answer == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _read(file: TextIO) -> dict[str, dict[str, str]]:
    file.seek(0)
    try:
        document = json.load(file)
    except json.JSONDecodeError:
        return {}  # new, or cut short by a crash: publishing again mends it
    return document if isinstance(document, dict) else {}


def _write(file: TextIO, document: dict[str, dict[str, str]]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(document, file)
    file.flush()


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
