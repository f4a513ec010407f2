"""Data sets: a file goes up in pieces, and goes on where a broken connection left it.

with Client("http://neurocore:8321") as loco:
    data = loco.push("rows.csv", mapping={"question": "Frage", "answer": "Antwort"})
    loco.submit("math", prepare={"source": {"kind": "dataset", "dataset": data.id}})
"""

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from loco.client.http import Transport, path_of, understood
from loco.contracts.datasets import DataSet, DataSetDetail, Format
from loco.contracts.errors import (
    Conflict,
    DataError,
    LocoError,
    NotFound,
    ServerUnreachable,
    TooManyRequests,
)
from loco.contracts.files import sha256_of
from loco.datasets.names import name_of

#: Bytes of a request: seconds on a slow line, and what is sent again at worst.
_PIECE = 4 * 2**20
#: Seconds between two tries to go on, and for a server to look through the last piece's file.
_PAUSE = 1.0
_LOOK_SECONDS = 600.0


class DataSetMethods:
    """The client's methods of data sets."""

    _transport: Transport
    _patience: float

    def push(
        self,
        file: str | Path,
        *,
        name: str | None = None,
        format: Format | str | None = None,  # noqa: A002 (the word of the API)
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> DataSet:
        """Uploads a file of rows, unless the server has it already under this name and mapping.

        Args:
            file: JSONL, CSV or Parquet.
            name: of the data set; none: the file's.
            format: kind of file; none: as it looks.
            mapping: field to column, `{"question": "Frage"}`.
            skip_bad: leave out rows that cannot be used; else they refuse the file.
            on_progress: is told bytes that have arrived, and all.

        Returns:
            The data set, which a job may name.

        Raises:
            DataError: rows cannot be used; each is named by its line.
            QuotaExceeded, DiskFull, BodyTooLarge: there is no room.
            ServerUnreachable: it did not answer for as long as the client's patience.
        """
        path = Path(file)
        digest, name = _digest(path), name or name_of(path)
        found = self._ready(digest, name, mapping or {})
        if found is not None:
            return found
        size = path.stat().st_size
        answer = self._transport.request(
            "POST",
            "/datasets",
            params={
                "name": name,
                "format": None if format is None else str(format),
                "map": [f"{field}={column}" for field, column in (mapping or {}).items()],
                "skip_bad": "true" if skip_bad else "false",
            },
            headers={
                "Upload-Complete": "?0",
                "Upload-Length": str(size),
                "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
            },
            content=b"",
            repeatable=False,
        )
        begun = understood(DataSet, answer)
        with path.open("rb") as content:
            upload = _Upload(self._transport, begun, content, size, self._patience)
            ended = upload.send(on_progress or (lambda _, __: None))
        if ended is not None:
            return ended
        # the answer to the last piece was lost, and with it the ID, where it was a data set already
        found = self._ready(digest, name, mapping or {})
        if found is None:
            raise LocoError(
                f"The upload of {path.name} ended, but its result is not known.",
                hint="Push it again. The server will say what is wrong with it.",
            )
        return found

    def datasets(self, *, sha256: str | None = None, page_size: int = 100) -> Iterator[DataSet]:
        """Your data sets and uploads, newest first; with an admin key everybody's.

        Args:
            sha256: only those of this content.
            page_size: data sets a page, at most 1000.
        """
        after: str | None = None
        while True:
            page = self._transport.get("/datasets", after=after, limit=page_size, sha256=sha256)
            found = [understood(DataSet, entry) for entry in page["data"]]
            yield from found
            if not page["has_more"] or not found:
                return
            after = found[-1].id

    def dataset(self, name: str) -> DataSetDetail:
        """A data set, by ID or name, with its first rows."""
        return understood(DataSetDetail, self._transport.get(path_of("datasets", name)))

    def delete_dataset(self, name: str) -> DataSet:
        """Deletes a data set or an upload; jobs keep their frozen copies.

        Raises:
            Conflict: a job that has not ended reads it.
        """
        answer = self._transport.request("DELETE", path_of("datasets", name), repeatable=False)
        return understood(DataSet, answer)

    def _ready(self, digest: str, name: str, mapping: Mapping[str, str]) -> DataSet | None:
        """What the server has of this content, under this name and mapping."""
        for found in self.datasets(sha256=digest):
            if found.status == "ready" and (found.name, found.mapping) == (name, dict(mapping)):
                return found
        return None


class _Upload:
    """One upload on its way."""

    def __init__(
        self, transport: Transport, begun: DataSet, content: BinaryIO, size: int, patience: float
    ) -> None:
        self._transport = transport
        self._path = path_of("datasets", begun.id)
        self._content = content
        self._size = size
        self._patience = patience

    def send(self, told: Callable[[int, int], object]) -> DataSet | None:
        """Sends what is missing until nothing is; None: it ended, and nobody said how.

        Raises:
            LocoError: the server refuses it, or has not taken a byte for as long as the patience.
        """
        offset, moved_at = 0, time.monotonic()
        while True:
            told(offset, self._size)
            try:
                found = self._piece(offset)
            except (ServerUnreachable, TooManyRequests, Conflict) as error:
                if time.monotonic() - moved_at > self._patience:
                    raise
                arrived = self._arrived(error)
                if arrived is None:
                    return None
                if arrived == offset:
                    time.sleep(_PAUSE)
            else:
                if found.status == "ready":
                    told(self._size, self._size)
                    return found
                arrived = found.bytes
            if arrived != offset:
                offset, moved_at = arrived, time.monotonic()

    def _piece(self, offset: int) -> DataSet:
        self._content.seek(offset)
        piece = self._content.read(_PIECE)
        last = offset + len(piece) >= self._size
        answer: Any = self._transport.request(
            "PATCH",
            self._path,
            headers={
                "Upload-Offset": str(offset),
                "Upload-Complete": "?1" if last else "?0",
                "Content-Type": "application/partial-upload",
            },
            content=piece,
            repeatable=False,
            read_timeout=_LOOK_SECONDS if last else None,
        )
        return understood(DataSet, answer)

    def _arrived(self, error: LocoError) -> int | None:
        """How much has arrived; None: the upload is over.

        Raises:
            LocoError: the server does not answer again: what ended the last piece.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                heard = self._transport.head(self._path)
            except NotFound:
                return None
            except ServerUnreachable:
                if time.monotonic() > deadline:
                    raise error from None
                time.sleep(_PAUSE)
                continue
            return None if heard["Upload-Complete"] == "?1" else int(heard["Upload-Offset"])


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}.", param="file", hint="Name a file of rows."
        ) from error
