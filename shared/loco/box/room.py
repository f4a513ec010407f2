"""Room on the disks of `loco up`: noticed when it is gone and when it is back."""

from pathlib import Path

from loco.contracts.disk import disk_full, free_bytes

#: Free bytes that Redis, the logs and what `loco up` writes itself need to go on.
NEEDED_BYTES = 16 * 1024**2


class Room:
    """Free space where `loco up` writes.

    Args:
        folders: looked at, in this order.
        needed: bytes that must be free in each.
    """

    def __init__(self, *folders: Path, needed: int = NEEDED_BYTES) -> None:
        self._folders = folders
        self._needed = needed
        self._lacking: Path | None = None

    @property
    def lacking(self) -> bool:
        """Whether there was too little at the last look."""
        return self._lacking is not None

    def event(self) -> str | None:
        """Looks.

        Returns:
            What changed, for people; None when nothing did.
        """
        before = self._lacking
        self._lacking = next((f for f in self._folders if free_bytes(f) < self._needed), None)
        if self._lacking == before:
            return None
        if self._lacking is None:
            return "there is free space again, everything continues"
        full = disk_full(self._lacking, needed=self._needed)
        return f"{full.code}: {full.message} Waiting for free space. {full.hint}"
