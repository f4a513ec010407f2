"""Files of this user alone: the ledger, answers, logs and locks of a data folder."""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from loco.contracts.errors import InvalidRequest

#: For what processes of ours write: files 0600, folders 0700.
PRIVATE_UMASK = 0o077
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(folder: Path) -> Path:
    """Makes a folder of mode 0700, or takes an existing one's from others; this user's links are followed.

    Raises:
        InvalidRequest: it, or the link to it, is another user's, who could put other files in; or it
            is no folder.
    """
    with suppress(FileExistsError):  # whatever lies there, it is looked at below
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid == os.getuid() and folder.exists():
        found = folder.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InvalidRequest(
            f"{folder} is {_what(found)}, not a folder that belongs to this user (uid "
            f"{os.getuid()}).",
            param="LOCO_DATA_DIR",
            hint="Choose another with --data-dir, or `chown` it to the user who runs locollm.",
        )
    if found.st_mode & _OTHERS:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return folder


def open_log(path: Path) -> BinaryIO:
    """Opens a file of this user alone, to append to."""
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, mode=0o600))


def take_from_others(data_dir: Path, names: Iterable[str]) -> list[Path]:
    """Takes everybody else's rights to what earlier releases left open in a data folder.

    Links in it are not followed, and what is another user's stays as it is: the data folder's own mode keeps
    others out of it.

    Args:
        data_dir: the data folder; only it and what is ours in it is touched, for it may be a folder
            that holds other things, too.
        names: files and folders in it, folders with all they hold.

    Returns:
        What was open to others.

    Raises:
        InvalidRequest: the folder is another user's.
    """
    private_folder(data_dir)
    mended = []
    for path in chain.from_iterable(_tree(data_dir / name) for name in names):
        found = path.lstat()
        kept = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
        if kept and found.st_mode & _OTHERS and found.st_uid == os.getuid():
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
            mended.append(path)
    return mended


def _tree(path: Path) -> Iterator[Path]:
    if path.exists() or path.is_symlink():
        yield path
    if path.is_dir() and not path.is_symlink():
        for parent, folders, files in os.walk(path):
            yield from (Path(parent) / name for name in (*folders, *files))


def _what(found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return (
            f"a link that belongs to uid {found.st_uid}"
            if found.st_uid != os.getuid()
            else "a link to nothing"
        )
    return f"of uid {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "a file"
