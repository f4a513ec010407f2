"""What a full disk looks like, whoever met it."""

import errno
import shutil
from pathlib import Path

from loco.contracts.errors import DiskFull

#: Nothing can be written where less is free, in bytes.
_NOTHING = 1_000_000
_NUMBERS = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error, by number or by the words of a library."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return any(
        getattr(link, "errno", None) == number or f"(os error {number})" in str(link)
        for link in links
        for number in _NUMBERS
    )


def disk_full(folder: Path, *, needed: int | None = None) -> DiskFull:
    """A full disk as the user is told of it.

    Args:
        folder: what was written to; it need not exist.
        needed: bytes, where that is known.
    """
    free = free_bytes(folder)
    wanted = "" if needed is None else f", and {needed} are needed"
    return DiskFull(
        f"The disk of {folder} is full: {free} bytes are free{wanted}.",
        hint="Free disk space there, e.g. delete old folders in adapters/*/runs/. Waiting jobs "
        "then continue by themselves. Continue a failed job with `loco retry JOB`.",
    )


def nothing_fits(folder: Path) -> bool:
    """Whether a folder's disk is so full that whatever is written there fails."""
    return free_bytes(folder) < _NOTHING


def free_bytes(folder: Path) -> int:
    """Bytes this user may still write under a folder, or under its nearest parent there is."""
    place = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(place).free
