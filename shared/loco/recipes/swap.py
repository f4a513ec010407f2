"""A recipe and its data files change together, or not at all, also where the power fails between.

    adapters/NAME/.recipes/lock           held while they change, and while a job takes them
    adapters/NAME/.recipes/pending.json   a change that has begun: whoever comes next ends it
    adapters/NAME/.recipes/N/             the Nth recipe that was put; its data files move out of it

A reader that takes the lock sees the old files or the new ones, never some of each.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.errors import LocoError
from loco.contracts.files import sync_folder, write_text
from loco.contracts.recipes import FileName

#: Folder of an adapter that holds what was put.
KEPT = ".recipes"
RECIPE = "adapter.yaml"
_LOCK = "lock"
_PENDING = "pending.json"


class Change(Contract):
    """A change that has begun."""

    version: int = Field(ge=1)
    #: Data files that move out of the version's folder.
    files: tuple[FileName, ...]
    #: Data files of the recipe before that nothing names any more.
    gone: tuple[FileName, ...] = ()


@contextmanager
def unchanging(adapter_dir: Path, *, make: bool = False) -> Iterator[None]:
    """Holds the recipe and its files as they are; a change that was cut off is ended first.

    Args:
        adapter_dir: folder of the adapter.
        make: make what is held where nobody has put a recipe.
    """
    kept = adapter_dir / KEPT
    with writable(adapter_dir.parent):
        descriptor = _locked(kept, make=make)
    try:
        if kept.is_dir():  # else nobody has put a recipe here
            with writable(adapter_dir.parent):
                _end(adapter_dir)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def writable(adapters_dir: Path) -> Iterator[None]:
    """Says in words that the server may not write to its adapters folder.

    Raises:
        LocoError: it may not.
    """
    try:
        yield
    except PermissionError as error:
        raise _unwritable(adapters_dir, error) from error
    except OSError as error:
        if error.errno == errno.EROFS:  # mounted read-only
            raise _unwritable(adapters_dir, error) from error
        raise


def _unwritable(adapters_dir: Path, error: OSError) -> LocoError:
    return LocoError(
        f"The server cannot write to its adapters folder {adapters_dir}: {error.strerror}.",
        hint="Allow its user to write there (in compose.yaml: mount ./adapters without `:ro` "
        "for the API), or put the recipe into the folder by hand.",
    )


def _locked(kept: Path, *, make: bool) -> int | None:
    """The lock, held; None: there is none. The adapter may be deleted while it is waited for."""
    while True:
        if make:
            kept.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = _opened(kept / _LOCK)
        except (FileNotFoundError, NotADirectoryError):  # not there, or not any more
            if make:
                continue
            return None
        if descriptor is None:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), (kept / _LOCK).stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _opened(lock: Path) -> int | None:
    """The lock, opened; None: nobody has made it, and this process may not."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(lock, flags | os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
    try:  # whoever only reads holds it as well
        return os.open(lock, flags | os.O_RDONLY)
    except FileNotFoundError:
        return None


def change(adapter_dir: Path, wanted: Change) -> None:
    """Puts a version's files in their places; to be called while `unchanging` is held."""
    write_text(adapter_dir / KEPT / _PENDING, wanted.model_dump_json())
    _end(adapter_dir)


def _end(adapter_dir: Path) -> None:
    pending = adapter_dir / KEPT / _PENDING
    try:
        wanted = Change.model_validate_json(pending.read_bytes())
    except FileNotFoundError:
        return
    made = adapter_dir / KEPT / str(wanted.version)
    for name in wanted.files:
        if (made / name).exists():  # else it moved before the power failed
            (made / name).replace(adapter_dir / name)
    write_text(adapter_dir / RECIPE, (made / RECIPE).read_text(encoding="utf-8"))
    for name in wanted.gone:
        (adapter_dir / name).unlink(missing_ok=True)
    sync_folder(adapter_dir)
    pending.unlink()
