"""Paths that come from elsewhere: a request, a recipe, the ledger, a server's list of artifacts."""

from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from loco.contracts.bounds import LONGEST_PATH
from loco.contracts.errors import UnsafePath


def relative(path: str) -> str:
    """A path below some folder, as it is written: no way up, no root, nothing a system call chokes on.

    Raises:
        ValueError: it is another kind of path.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError("is not a path inside a folder")
    if "\0" in path or not path.isprintable():
        raise ValueError("has unprintable characters")
    return path


RelativePath = Annotated[str, Field(max_length=LONGEST_PATH), AfterValidator(relative)]
#: Stands for one folder: what `jobs` calls its run, and the time-based IDs of the ledger.
JobId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


def inside(folder: Path, path: str | Path) -> Path:
    """The place of a path below a folder, every link on the way followed.

    Args:
        folder: may itself be a link.
        path: relative to it, or absolute; need not exist.

    Raises:
        UnsafePath: it leads out of the folder.
    """
    root = folder.resolve()
    try:
        place = (root / path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, a name too long
        raise UnsafePath(f"{str(path)!r:.200} is not a path: {error}.", hint=_HINT) from error
    if place == root or not place.is_relative_to(root):
        raise UnsafePath(f"{str(path)!r:.200} leads outside {folder}.", hint=_HINT)
    return place


_HINT = (
    "Nothing was read or written there. locollm does not follow links that lead outside a "
    "folder. Mount a larger disk there instead, or choose another folder (LOCO_ADAPTERS_DIR, "
    "LOCO_DATA_DIR)."
)
