"""Rows that were deleted and that jobs still read: they count against their owner until those jobs go.

    adapters/.inputs/datasets/lent/ID.json   whose, and how many bytes
    adapters/.inputs/SHA256/                 the jobs' frozen copy, which was a link to the data set's

Otherwise an owner who uploads, submits and deletes, again and again, fills the disk beside the quota.
"""

from pathlib import Path

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.datasets import DataSet
from loco.contracts.files import write_text
from loco.datasets.records import entries, read


class _Rows(Contract):
    owner: str = Field(description="Who uploaded them.")
    sha256: str = Field(description="Of the content.")
    bytes: int = Field(ge=0, description="Size of the content.")


class Lent:
    """What is lent to jobs of a store.

    Args:
        root: folder of the store of uploads, beside the frozen inputs.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "lent"
        self._frozen = root.parent

    def keep(self, record: DataSet) -> None:
        """Remembers a data set whose content leaves the store, if a job has a copy of it."""
        if record.sha256 is None or not (self._frozen / record.sha256).is_dir():
            return
        rows = _Rows(owner=record.owner, sha256=record.sha256, bytes=record.bytes)
        if rows not in self._known():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_text(self._folder / f"{record.id}.json", rows.model_dump_json())

    def bytes_of(self, owner: str) -> int:
        """Bytes of an owner that jobs still hold."""
        return sum(rows.bytes for rows in self._known() if rows.owner == owner)

    def _known(self) -> list[_Rows]:
        """What is lent now; what no job holds any more is forgotten."""
        found = []
        for path in entries(self._folder, "*.json"):
            rows = read(_Rows, path)
            if rows is None:
                continue
            if (self._frozen / rows.sha256).is_dir():
                found.append(rows)
            else:
                path.unlink(missing_ok=True)
        return found
