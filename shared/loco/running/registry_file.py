"""adapters/registry.yaml follows the ledger, and an earlier release's is taken over once."""

import logging
from pathlib import Path

from loco.contracts.errors import Conflict
from loco.contracts.versions import Version
from loco.ledger.ledger import Ledger
from loco.recipes import registry
from loco.settings import Settings

#: Versions read from the ledger at a time.
_PAGE = 100

logger = logging.getLogger(__name__)


def export_committed(ledger: Ledger, settings: Settings) -> None:
    """Writes the readable copy if it is out of date; trouble is logged and tried again later."""
    try:
        export(ledger, settings.adapters_dir)
    except (OSError, Conflict) as error:
        logger.warning("could not write %s: %s", registry.REGISTRY, error)


def export(ledger: Ledger, adapters_dir: Path) -> bool:
    """Writes the readable copy where the ledger has changed since.

    Returns:
        Whether it was written.

    Raises:
        OSError: the file cannot be written.
        Conflict: see `take_over`.
    """
    take_over(ledger, adapters_dir)
    if ledger.registry.unexported() is None:
        return False
    with registry.locked(adapters_dir):
        # counted first: what changes while it is read is written once more
        changes = ledger.registry.unexported()
        if changes is None:
            return False
        highest = ledger.registry.highest()
        known = {adapter: _all(ledger, adapter) for adapter in highest}
        registry.write(adapters_dir, known, highest)
        ledger.registry.exported(changes)
    return True


def take_over(ledger: Ledger, adapters_dir: Path) -> int:
    """Takes the versions of an existing registry.yaml into a ledger that has none.

    That is the file of an earlier release, whose ledger had no registry, or the copy of a ledger
    that was lost.

    Returns:
        How many versions were taken over.

    Raises:
        Conflict: the file cannot be read; it is left as it is.
    """
    if not ledger.registry.untouched() or not (adapters_dir / registry.REGISTRY).is_file():
        return 0
    count = ledger.registry.take_over(registry.read(adapters_dir), registry.highest(adapters_dir))
    if count:
        logger.info("imported %d versions of %s", count, adapters_dir / registry.REGISTRY)
    return count


def _all(ledger: Ledger, adapter: str) -> list[Version]:
    found: list[Version] = []
    more = True
    while more:
        after = found[-1].version if found else None
        page, more = ledger.registry.versions(adapter, after=after, limit=_PAGE)
        found += page
    return found
