"""An upload on its way: what it may have, what has arrived, and whether that is what was announced."""

import os
from pathlib import Path
from typing import BinaryIO

from pydantic import Field

from loco.contracts.base import Contract
from loco.contracts.datasets import DataSet, Inspected
from loco.contracts.disk import disk_full, free_bytes, is_disk_full
from loco.contracts.errors import BodyTooLarge, DataError

#: Bytes of disk that an upload leaves free.
LEFT_FREE = 64 * 2**20


class Limits(Contract):
    """What an owner may store."""

    file: int = Field(description="Largest data set, in bytes.")
    owner: int = Field(description="Bytes of data sets per owner.")
    count: int = Field(description="Data sets per owner.")


class Upload(Contract):
    """An upload as it was asked for."""

    record: DataSet
    #: Bytes it may have; reserved of its owner's until it has ended.
    limit: int
    #: Digest that its sender says it has.
    sha256: str | None = None
    #: Whether rows that cannot be used are left out; else they end the upload.
    skip_bad: bool = False


class Part:
    """What has arrived of an upload, open to add to. One at a time has it."""

    def __init__(self, upload: Upload, file: BinaryIO) -> None:
        self.upload = upload
        self._file = file
        self.offset = file.seek(0, os.SEEK_END)

    def append(self, piece: bytes) -> None:
        """Adds bytes.

        Raises:
            BodyTooLarge: more than were announced, or than a data set may have; nothing is added.
            DiskFull: there is no room.
        """
        limit = self.upload.limit
        if self.offset + len(piece) > limit:
            said = (
                "was announced" if self.upload.record.length is not None else "a data set may have"
            )
            raise BodyTooLarge(
                f"The upload is larger than {limit:,} bytes, which {said}.",
                param="Upload-Length",
                hint="Send exactly what was announced, or fewer rows.",
            )
        folder = Path(self._file.name).parent
        if piece and free_bytes(folder) - len(piece) < LEFT_FREE:
            raise disk_full(folder, needed=len(piece) + LEFT_FREE)
        try:
            self._file.write(piece)
            self._file.flush()
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(folder) from error
            raise
        finally:
            self.offset = os.fstat(self._file.fileno()).st_size


def check(upload: Upload, found: Inspected) -> None:
    """Refuses what is not what was announced, and rows that cannot be used, each by its line."""
    if upload.sha256 not in (None, found.sha256):
        raise DataError(
            f"The received file has SHA-256 {found.sha256}, not {upload.sha256} as announced.",
            param="Repr-Digest",
            hint="The file changed during the upload. Send it again.",
        )
    if found.bad_rows and not upload.skip_bad:
        unit = found.format.unit
        named = "".join(f"\n  {unit} {p.line}: {p.what}. {p.fix}" for p in found.problems)
        more = found.bad_rows - len(found.problems)
        rest = f"\n  … and {more:,} more" if more else ""
        raise DataError(
            f"{found.bad_rows:,} of {found.bad_rows + found.rows:,} rows of {upload.record.name} cannot be used:"
            f"{named}{rest}",
            param="rows",
            hint="Fix them and send the file again, or leave them out: skip_bad=true (--skip-bad).",
        )
