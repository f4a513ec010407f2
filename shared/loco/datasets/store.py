"""The store of uploads: one copy of a content, whoever sent it; a record for each data set.

    adapters/.inputs/datasets/open/ID.json   an upload that has not ended
    adapters/.inputs/datasets/open/ID/NAME   what has arrived of it
    adapters/.inputs/datasets/ready/ID.json  what is known of a data set
    adapters/.inputs/datasets/content/SHA256 its rows, read-only; a job's frozen copy is a link to it

It lies beside the frozen inputs, in the same file system, so that to freeze a data set copies
nothing, and to delete one takes nothing from a job. Every change is made under one lock.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from loco.contracts.datasets import DataSet, DataSetDetail, Format, Inspected
from loco.contracts.disk import disk_full, free_bytes
from loco.contracts.errors import (
    BodyTooLarge,
    Conflict,
    DataError,
    NotFound,
    QuotaExceeded,
)
from loco.contracts.files import sync_folder, try_lock, write_text
from loco.datasets.lent import Lent
from loco.datasets.names import is_id
from loco.datasets.records import entries, read
from loco.datasets.rows import Columns
from loco.datasets.uploads import LEFT_FREE, Limits, Part, Upload, check

#: Folder of the store in the adapters folder; beside the frozen inputs, whose mount it shares.
STORE = ".inputs/datasets"
#: An upload that nothing was added to for so long is removed.
UPLOAD_SECONDS = 24 * 3600.0

logger = logging.getLogger(__name__)

#: Looks through a file; raises DataError where it cannot be used.
Inspect = Callable[[Path, Format | None, Mapping[str, str]], Inspected]


class DataSets:
    """The uploads of one adapters folder.

    Args:
        adapters_dir: holds the store.
        limits: of an owner.
    """

    def __init__(self, adapters_dir: Path, limits: Limits) -> None:
        root = adapters_dir / STORE
        self._open, self._ready, self._content = (root / n for n in ("open", "ready", "content"))
        self._root = root
        self._lent = Lent(root)
        self._limits = limits

    def begin(
        self,
        name: str,
        owner: str,
        *,
        length: int | None = None,
        format: Format | None = None,  # noqa: A002 (the word of the API)
        mapping: Mapping[str, str] | None = None,
        sha256: str | None = None,
        skip_bad: bool = False,
    ) -> DataSet:
        """Begins an upload, and reserves its bytes of its owner's.

        Args:
            name: of the data set.
            owner: whose it will be.
            length: bytes; none: as many as a data set, and what its owner has left, may have.
            format: kind of file; none: as it looks.
            mapping: field to column.
            sha256: what the content shall have; none: not known.
            skip_bad: leave out rows that cannot be used.

        Raises:
            DataError: the mapping names no field.
            BodyTooLarge: a data set may not have so many bytes.
            QuotaExceeded: the owner may not have so many, or no further data set.
            DiskFull: there is no room.
        """
        Columns(mapping)
        most = self._limits.file
        if length is not None and length > most:
            raise BodyTooLarge(
                f"The data set has {length:,} bytes. {most:,} are allowed.",
                param="Upload-Length",
                hint="Send fewer rows, or raise LOCO_DATASET_MB on the server.",
            )
        with self._locked():
            self._expire()
            left = self._left(owner, length)
            free = free_bytes(self._root) - self._promised() - LEFT_FREE
            if (length or 1) > free:
                raise disk_full(self._root, needed=length)
            record = DataSet(
                id=f"ds-{uuid4().hex[:16]}",
                name=name,
                owner=owner,
                created_at=datetime.now(UTC),
                status="uploading",
                bytes=0,
                length=length,
                format=format,
                mapping=dict(mapping or {}),
            )
            limit = min(most, left) if length is None else length
            upload = Upload(record=record, limit=limit, sha256=sha256, skip_bad=skip_bad)
            (self._open / record.id).mkdir(mode=0o700, parents=True)
            self._part(record).touch(mode=0o600)
            write_text(self._open / f"{record.id}.json", upload.model_dump_json())
        return record

    def get(self, name: str, owner: str | None, *, sees_all: bool = False) -> DataSetDetail:
        """A data set by its ID, or the newest of a name; one that is still uploaded, too.

        Args:
            name: ID, or name of one of the owner's own: another's newer one does not take its place.
            owner: who asks; none: the service, which sees all by ID.
            sees_all: whether they see others', too, by ID.

        Raises:
            NotFound: there is none that this owner sees.
        """
        every = self._all(name if is_id(name) else "*")
        sees_all = sees_all or owner is None
        found = [d for d in every if name in ((d.id, d.name) if d.owner == owner else (d.id,))]
        found = [d for d in found if sees_all or d.owner == owner]
        if not found:
            raise NotFound(
                f"No data set {name!r:.120}.",
                param="dataset",
                hint="`loco data list` shows yours. `loco data push FILE` uploads one.",
            )
        # a name means what can be used before what cannot yet
        return max(found, key=lambda d: (d.status == "ready", d.created_at, d.id))

    def list(self, owner: str | None, *, sha256: str | None = None) -> list[DataSetDetail]:
        """The data sets that an owner sees (none: all), newest first; only those of a content."""
        with self._locked():
            self._expire()
        found = (d for d in self._all() if owner in (None, d.owner))
        wanted = (d for d in found if sha256 in (None, d.sha256))
        return sorted(wanted, key=lambda d: (d.created_at, d.id), reverse=True)

    def content(self, record: DataSet) -> Path:
        """The file of a data set's rows.

        Raises:
            Conflict: it has not been uploaded to its end.
            NotFound: the file is gone.
        """
        if record.sha256 is None:
            raise Conflict(
                f"Data set {record.name} ({record.id}) is still uploading: {record.bytes:,} "
                "bytes so far.",
                param="dataset",
                hint="Push it again. The upload continues where it was cut off.",
            )
        path = self._content / record.sha256
        if not path.is_file():
            raise NotFound(
                f"The file of data set {record.name} ({record.id}) is missing: {path}.",
                param="dataset",
                hint="Delete it and push the file again.",
            )
        return path

    @contextmanager
    def writing(self, dataset_id: str, owner: str | None) -> Iterator[Part]:
        """An upload, to add to.

        Raises:
            NotFound: there is none of this ID that this owner sees.
            Conflict: it has ended, or another request adds to it.
        """
        if self.get(dataset_id, owner).status == "ready":
            raise _ended(dataset_id)
        with self._locked():
            upload = next(self._uploads(dataset_id), None)
            if upload is None:
                raise _ended(dataset_id)
            part = self._part(upload.record)
            lock = try_lock(part)
        if lock is None:
            raise Conflict(
                f"Another request is adding to upload {dataset_id}.",
                param="Upload-Offset",
                hint="Wait until it ends. Then ask with HEAD where to continue.",
            )
        try:
            with part.open("ab") as file:
                yield Part(upload, file)
                file.flush()
                os.fsync(file.fileno())
        finally:
            os.close(lock)

    def finish(self, part: Part, inspect: Inspect) -> tuple[DataSetDetail, bool]:
        """Makes a data set of an upload that has arrived, while its part is held.

        Args:
            part: all of it.
            inspect: looks through the rows.

        Returns:
            The data set, and whether it is new: its owner may have had it already, under this name.

        Raises:
            Conflict: bytes are missing.
            DataError: the content is not what was announced, or holds rows that cannot be used; the
                upload is gone then.
        """
        upload = part.upload
        record = upload.record
        if record.length is not None and part.offset != record.length:
            raise Conflict(
                f"Only {part.offset:,} of {record.length:,} bytes have arrived.",
                param="Upload-Offset",
                hint="Send the rest with Upload-Complete: ?1.",
            )
        try:
            found = inspect(self._part(record), record.format, record.mapping)
            check(upload, found)
        except DataError:
            with self._locked():
                self._remove(record)
            raise
        ready = DataSetDetail.model_validate(
            {
                **record.model_dump(),
                **found.fields(),
                "status": "ready",
                "bytes": part.offset,
                "length": part.offset,
            }
        )
        with self._locked():
            return self._kept(ready)

    def delete(self, record: DataSet) -> None:
        """Removes a data set, or an upload; frozen copies of jobs stay.

        Raises:
            Conflict: a request adds to the upload just now, or ended it since `record` was read.
        """
        with self._locked():
            now = next(self._all(record.id), None)
            if now is not None and now.status != record.status:
                raise Conflict(f"Upload {record.id} has just ended.", hint="Delete it again.")
            if self._part(record).exists() and not self._removed(record):
                raise Conflict(
                    f"A request is adding to upload {record.id}.", hint="Try again later."
                )
            (self._ready / f"{record.id}.json").unlink(missing_ok=True)
            if record.sha256 and not any(d.sha256 == record.sha256 for d in self._all()):
                self._lent.keep(record)
                (self._content / record.sha256).unlink(missing_ok=True)

    def _kept(self, ready: DataSetDetail) -> tuple[DataSetDetail, bool]:
        """Puts content and record in their places; an equal data set of this owner stays the one."""
        assert ready.sha256
        same = {"owner", "name", "sha256", "mapping", "format"}
        equal = ready.model_dump(include=same)
        for other in self._all():
            if other.status == "ready" and other.model_dump(include=same) == equal:
                self._remove(ready)
                return other, False
        content = self._content / ready.sha256
        self._content.mkdir(mode=0o700, exist_ok=True)
        if not content.exists():
            part = self._part(ready)
            part.chmod(0o444)
            part.rename(content)
            sync_folder(self._content)
        self._ready.mkdir(mode=0o700, exist_ok=True)
        write_text(self._ready / f"{ready.id}.json", ready.model_dump_json())
        self._remove(ready)
        return ready, True

    def _left(self, owner: str, length: int | None) -> int:
        """Bytes that an owner may still store.

        Raises:
            QuotaExceeded: none, fewer than are asked for, or no further data set.
        """
        own = [d for d in self._all() if d.owner == owner]
        limits = {u.record.id: u.limit for u in self._uploads()}
        lent = self._lent.bytes_of(owner)
        used = lent + sum(limits.get(d.id, d.bytes) for d in own)
        hint = "Delete some with `loco data rm`, or ask the person who runs the server for more"
        if len(own) >= self._limits.count:
            raise QuotaExceeded(
                f"{owner!r} has {len(own)} data sets and uploads. {self._limits.count} are "
                "allowed.",
                hint=f"{hint} (LOCO_DATASETS).",
            )
        left = self._limits.owner - used
        if left <= 0 or (length is not None and length > left):
            raise QuotaExceeded(
                f"{owner!r} has data sets and uploads of {used:,} bytes ({lent:,} of them "
                f"deleted, but still read by jobs). {self._limits.owner:,} are allowed, and "
                f"this upload needs {length or 1:,} more.",
                hint=f"{hint} (LOCO_DATASETS_MB).",
            )
        return left

    def _promised(self) -> int:
        """Bytes that open uploads may have, and that have not arrived."""
        return sum(max(0, u.limit - self._size(u)) for u in self._uploads())

    def _size(self, upload: Upload) -> int:
        try:
            return self._part(upload.record).stat().st_size
        except FileNotFoundError:
            return 0

    def _part(self, record: DataSet) -> Path:
        return self._open / record.id / record.name

    def _uploads(self, which: str = "*") -> Iterator[Upload]:
        for path in entries(self._open, f"{which}.json"):
            if found := read(Upload, path):
                yield found

    def _all(self, which: str = "*") -> Iterator[DataSetDetail]:
        """Every record, or that of an ID; those of uploads with what has arrived."""
        ready = set()
        for path in entries(self._ready, f"{which}.json"):
            if record := read(DataSetDetail, path):
                ready.add(record.id)
                yield record
        for upload in self._uploads(which):
            if upload.record.id not in ready:
                fields = {**upload.record.model_dump(), "bytes": self._size(upload)}
                yield DataSetDetail.model_validate(fields)

    def _expire(self) -> None:
        """Removes uploads that nothing was added to for long; one that is written to stays."""
        for upload in self._uploads():
            part = self._part(upload.record)
            age = time.time() - part.stat().st_mtime if part.exists() else UPLOAD_SECONDS
            if age >= UPLOAD_SECONDS and self._removed(upload.record):
                logger.info("upload %s expired", upload.record.id)

    def _removed(self, record: DataSet) -> bool:
        """Removes an upload, unless a request adds to it."""
        part = self._part(record)
        lock = try_lock(part) if part.exists() else None
        if lock is None and part.exists():
            return False
        self._remove(record)
        if lock is not None:
            os.close(lock)
        return True

    def _remove(self, record: DataSet) -> None:
        if (folder := self._open / record.id).is_dir():
            shutil.rmtree(folder)
        (self._open / f"{record.id}.json").unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _ended(dataset_id: str) -> Conflict:
    return Conflict(
        f"The upload of {dataset_id} has ended.",
        param="dataset",
        hint=f"GET /datasets/{dataset_id} shows it. POST /datasets starts another.",
    )
