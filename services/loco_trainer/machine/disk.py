"""Free disk space, checked before a stage writes, so that it does not fail near its end."""

import shutil
from pathlib import Path

from loco.contracts.errors import DiskFull

#: Kept free beside what a stage writes: logs, Redis and the rest of the machine go on.
RESERVE_BYTES = 256 * 1024**2


def require_free(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises unless `needed_bytes` and a reserve are free where `folder` lies.

    Args:
        folder: where the stage will write; it need not exist yet.
        needed_bytes: upper bound of what will be written.
        purpose: what for, as it continues "… needs N bytes".

    Raises:
        DiskFull: names the bytes needed and the bytes free.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    wanted = needed_bytes + RESERVE_BYTES
    if free < wanted:
        raise DiskFull(
            f"{purpose[:1].upper()}{purpose[1:]} needs {wanted} bytes ({wanted / 1e9:.1f} GB) "
            f"under {existing}; {free} bytes ({free / 1e9:.1f} GB) are free.",
            hint=f"Free {(wanted - free) / 1e9:.1f} GB, e.g. delete old folders in "
            "adapters/*/runs/, or point LOCO_ADAPTERS_DIR and LOCO_DATA_DIR at a larger "
            "disk.",
        )
