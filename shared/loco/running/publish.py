"""Publishing: a committed stage's files appear at the adapter's well-known places, whole or not at all.

    adapters/NAME/training_data.jsonl   checkpoints/   gguf/unsloth.Q4_K_M.gguf   Modelfile

They are hard links to the committed attempt's files, so they cost no disk; read-only as those are
(`running.verify`), and verified before. `.publish.lock` keeps
two publishers apart and remembers what was published, so that a late publisher of an older job
never replaces a newer job's files. Who reads several of the files and wants them of one job holds a
shared lock on it meanwhile: `flock --shared .publish.lock COMMAND`. Publishing waits some seconds for
readers, and else fails; its caller tries again later.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from loco.contracts.files import PUBLISH_LOCK, sync_folder
from loco.contracts.jobs import Task
from loco.contracts.paths import inside
from loco.running.verify import make_read_only, verified

#: Artifacts that appear beside the recipe: files, and folders (with a slash).
FILES = ("training_data.jsonl", "gguf/", "Modelfile")
#: Folders that are replaced as a whole, because their files belong together.
FOLDERS = ("checkpoints",)

#: Ends the names of what is made ready.
_PART = ".publish.part"
#: Seconds to wait for readers, and between two looks.
_PATIENCE = 5.0
_LOOK = 0.005
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def publish(adapters_dir: Path, folder: Path, task: Task) -> bool:
    """Puts a committed task's well-known files in their places.

    Args:
        adapters_dir: the artifacts' paths begin here.
        folder: where they are published: the adapter's, or one below it (`JobSpec.place`).
        task: committed.

    Returns:
        False when a newer job has already published this stage.

    Raises:
        OSError: the disk is full or a reader holds the lock for long; nothing half-written is left.
        NotFound, ArtifactChanged: a file is gone, or not what was committed; nothing is published.
        UnsafePath: a link leads out of the adapters folder; nothing is published.
    """
    inside(adapters_dir, folder).mkdir(parents=True, exist_ok=True)
    finished = task.finished_at.isoformat() if task.finished_at else ""
    with _locked(folder / PUBLISH_LOCK) as record:
        published = _read(record)
        newest = published.get(task.stage, {}).get("finished_at", "")
        if newest and finished and _instant(newest) > _instant(finished):
            return False
        published_names = (*FILES, *(f"{name}/" for name in FOLDERS))
        sources = {
            a.name: verified(adapters_dir, a)
            for a in task.artifacts
            if a.name.startswith(published_names)
        }
        earlier = published.get(task.stage, {}).get("files", ())
        _place(adapters_dir, folder, sources, _outdated(earlier, sources))
        files = [name for name in sources if name.startswith("gguf/")]
        published[task.stage] = {
            "task_id": task.task_id,
            "finished_at": finished,
            "files": files,
        }
        _write(record, published)
    return True


def _place(
    adapters_dir: Path, folder: Path, sources: Mapping[str, Path], outdated: Iterable[str] = ()
) -> None:
    """Makes every file ready first, so that what is missing or full leaves all as it was."""
    fresh = folder / _PART
    # each beside its place: `gguf/` may lie on another disk, and no rename crosses disks
    parts = {
        folder / name: (folder / name).with_name(f".{Path(name).name}{_PART}")
        for name in sources
        if name.startswith(FILES)
    }
    members = [name for name in sources if name.partition("/")[0] in FOLDERS]
    parents = {folder, *(place.parent for place in parts)}
    try:
        for parent in parents:
            _checked(adapters_dir, folder, parent).mkdir(parents=True, exist_ok=True)
        _clear(fresh, parents)  # of a publisher that died; the lock is ours
        for place, part in parts.items():
            _link(sources[place.relative_to(folder).as_posix()], part)
        for name in members:
            _link(sources[name], fresh / name)
        for place, part in parts.items():
            part.replace(place)
        for name in outdated:
            (folder / "gguf" / name).unlink(missing_ok=True)
        for name in FOLDERS:
            if (fresh / name).exists():
                sync_folder(fresh / name)
                _swap(fresh / name, folder / name)
        for parent in parents:
            sync_folder(parent)
    finally:
        # what was replaced, and links to files that were in their places already: rename() keeps both
        _clear(fresh, parents)


def _outdated(earlier: Iterable[object], sources: Mapping[str, Path]) -> list[str]:
    """Files in `gguf/` that this folder's last publication put there and this one does not replace."""
    names = {
        Path(name).name for name in earlier if isinstance(name, str) and name.startswith("gguf/")
    }
    return sorted(name for name in names if f"gguf/{name}" not in sources)


def _checked(adapters_dir: Path, folder: Path, parent: Path) -> Path:
    """The folder a file is put in, which may not lead out of the adapters folder.

    But for a link of this user's own at the folder's first level: who set it up keeps `gguf/` on another
    disk. What is published below it stays below it.
    """
    below = parent.relative_to(folder).parts
    first = folder.joinpath(*below[:1])
    if below and first.is_symlink() and first.lstat().st_uid == os.getuid():
        rest = Path(*below[1:])
        return inside(first, rest) if rest.parts else first.resolve()
    return inside(adapters_dir, parent)


def _clear(fresh: Path, parents: Iterable[Path]) -> None:
    """Deletes what was made ready."""
    shutil.rmtree(fresh, ignore_errors=True)
    for part in [part for parent in parents for part in parent.glob(f".*{_PART}")]:
        part.unlink()


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
        make_read_only(target)
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(fresh: Path, place: Path) -> None:
    """Puts the folder `fresh` at `place`; the old one, if any, ends up beside or at `fresh`."""
    if not place.exists():
        fresh.rename(place)
        return
    if sys.platform == "linux" and _exchange(fresh, place):
        return
    # no atomic exchange here: for a moment there is no folder, but never a half one
    aside = fresh.with_suffix(".old")
    place.rename(aside)
    try:
        fresh.rename(place)
    except OSError:
        aside.rename(place)
        raise


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
    """The lock, for as long as nobody reads.

    Raises:
        TimeoutError: somebody reads for longer than `_PATIENCE`; who publishes has other work, too.
    """
    deadline = time.monotonic() + _PATIENCE
    with path.open("a+") as file:
        while not _taken(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a reader has kept {path} locked for {_PATIENCE:g} seconds")
            time.sleep(_LOOK)
        yield file


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: TextIO) -> dict[str, dict[str, Any]]:
    file.seek(0)
    try:
        document = json.load(file)
    except json.JSONDecodeError:
        return {}  # new, or cut short by a crash: publishing again mends it
    return document if isinstance(document, dict) else {}


def _write(file: TextIO, document: dict[str, dict[str, Any]]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(document, file)
    file.flush()


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
