"""A recipe and its data files change together, or not at all, also where the power fails between.

    adapters/NAME/.recipes/lock           held while they change, and while a job takes them
    adapters/NAME/.recipes/pending.json   a change that has begun: whoever comes next ends it
    adapters/NAME/.recipes/N/             the Nth recipe that was put; its data files move out of it

A reader that takes the lock sees the old files or the new ones, never some of each.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from loco.contracts.base import Contract
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
def unchanging(adapter_dir: Path) -> Iterator[None]:
    """Holds the recipe and its files as they are; a change that was cut off is ended first."""
    kept = adapter_dir / KEPT
    if not kept.is_dir():  # nobody has put a recipe here
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(kept / _LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _end(adapter_dir)
        yield
    finally:
        os.close(descriptor)


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
