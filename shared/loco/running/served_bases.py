"""Deletes kept bases (`models/served/`) that no job and no version has named for a day.

A base is written once and shared by every adapter exported alone on it (docs/adr/0027), so it outlives
the job that wrote it. The trainer's worker looks every hour.
"""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loco.contracts.serving import SERVED_FOLDER
from loco.ledger.ledger import Ledger

logger = logging.getLogger(__name__)

#: An export says which base it used when it commits, so one used lately may be named soon.
PATIENCE_SECONDS = 86_400.0


def clear_unused(ledger: Ledger, models_dir: Path) -> list[Path]:
    """Deletes kept bases that nothing names, with their facts.

    An export under way holds the folder; nothing is deleted then.

    Args:
        ledger: its jobs and versions count.
        models_dir: the folder of base models.

    Returns:
        The GGUFs that went.

    Raises:
        RedisUnavailable: nobody can tell what is used.
        OSError: a file cannot be deleted.
    """
    folder = models_dir / SERVED_FOLDER
    old = [path for path in folder.glob("*.gguf") if _is_old(path)]
    if not old:
        return []
    with _held(folder / ".lock") as free:
        if not free:
            return []
        named = ledger.removals.named(path.name for path in old)
        # again: an export may have taken one before the folder was held
        gone = [path for path in old if path.name not in named and _is_old(path)]
        for path in gone:
            logger.info("%s: no job and no version uses it, deleted", path)
            # the facts first: a GGUF without them is written again
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return gone


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > PATIENCE_SECONDS
    except FileNotFoundError:
        return False


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Whether the folder's lock is free, and held meanwhile."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
