"""The store of frozen inputs: what jobs read, copied when they are accepted, by SHA-256.

    adapters/.inputs/SHA256/NAME        read-only; one copy of a content, whatever reads it

Copies, never links: who edits a file in place must not edit the job. The rows of an uploaded data set
are linked: nobody but the server has them. A deleted job takes with it what no other reads
(`running.remove`).
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from loco.contracts.artifacts import FrozenFile
from loco.contracts.errors import DataError, DiskFull, LocoError, NotFound
from loco.contracts.files import sync_folder

#: Folder of the store in the adapters folder; no adapter can have this name.
STORE = ".inputs"

_CHUNK = 1024 * 1024
#: A file that changes while it is copied is copied again, so many times.
_TRIES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What a file looks like to digest: the same file, not written since. A change within one tick of
#: the clock leaves no trace, so a digest is kept only of a file that has been at rest for a while.
_Look = tuple[int, int, int, int, int]
_AT_REST_SECONDS = 2.0
_KEPT_DIGESTS = 1000
_digests: dict[_Look, str] = {}


def freeze(file: Path, name: str, adapters_dir: Path, *, link: bool = False) -> FrozenFile:
    """Copies a file into the store, unless its content is there already.

    A file is read once for its digest and, when it is new, once more to be copied; one that has not
    changed since this process last froze it is not read at all.

    Args:
        file: a regular file, resolved and shown to lie where it may (`dataset_path`).
        name: what recipe or request call it; its last part names the copy.
        adapters_dir: holds the store.
        link: take the file itself where it lies in the same file system: it never changes.

    Raises:
        DataError: it cannot be read, is no regular file, or does not stop changing.
        DiskFull: there is no room for the copy; nothing is left of it.
        LocoError: the store cannot be written.
    """
    target_name = Path(name).name
    store = adapters_dir / STORE
    for _ in range(_TRIES):
        with _opened(file, name) as source:
            digest = _digest_of(source)
            size = os.fstat(source.fileno()).st_size
            target = store / digest / target_name
            frozen = FrozenFile(
                path=target.relative_to(adapters_dir).as_posix(), sha256=digest, size=size
            )
            if _is(target, frozen):
                return frozen
            try:
                kept = (link and _link(file, target)) or _store(source, target, frozen)
            except OSError as error:
                raise _unwritable(error, name, size, store) from error
        if kept:
            return frozen
    raise DataError(
        f"{name!r} is changing right now.",
        param="path",
        hint="Submit the job when nothing writes to the file.",
    )


@contextmanager
def held(adapters_dir: Path, *, exclusive: bool = False, wait: bool = True) -> Iterator[None]:
    """Keeps what is frozen until its job is recorded, or (exclusive) keeps others from freezing.

    Args:
        adapters_dir: holds the store.
        exclusive: of who deletes from the store; waits until nobody holds it.
        wait: whether to wait at all.

    Raises:
        BlockingIOError: it is held, and was not to be waited for.
    """
    path = adapters_dir / STORE / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def frozen_file(adapters_dir: Path, name: str, frozen: FrozenFile) -> Path:
    """Where the copy of an input lies, shown to lie in the store.

    Raises:
        NotFound: it lies elsewhere: the record was tampered with.
    """
    store = (adapters_dir / STORE).resolve()
    path = (adapters_dir / frozen.path).resolve()
    if not path.is_relative_to(store):
        raise NotFound(
            f"The copy of {name!r} is outside the store {store}.",
            hint="Submit the job again.",
        )
    return path


def is_intact(adapters_dir: Path, name: str, frozen: FrozenFile) -> bool:
    """Whether the copy of an input is there with its content."""
    return _is(frozen_file(adapters_dir, name, frozen), frozen)


def _is(path: Path, frozen: FrozenFile) -> bool:
    try:
        with _opened(path, path.name) as file:
            if os.fstat(file.fileno()).st_size != frozen.size:
                return False
            return _digest_of(file) == frozen.sha256
    except DataError:
        return False


def _opened(file: Path, name: str) -> BufferedReader:
    """Opens a regular file and nothing else; a pipe that was put in its place does not block.

    Raises:
        DataError: it is something else, or cannot be opened.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(
            f"{name!r} cannot be read: {error.strerror}.",
            param="path",
            hint=f"Allow the server's user to read {file}.",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name!r} is not a regular file.", param="path", hint="Name a file.")
    return os.fdopen(descriptor, "rb")


def _digest_of(file: BufferedReader) -> str:
    look = _look(file)
    known = _digests.get(look)
    if known is None:
        file.seek(0)
        known = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - look[-1] / 1e9 > _AT_REST_SECONDS and _look(file) == look:
            if len(_digests) >= _KEPT_DIGESTS:
                _digests.clear()
            _digests[look] = known
    return known


def _look(file: BufferedReader) -> _Look:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _store(source: BufferedReader, target: Path, frozen: FrozenFile) -> bool:
    """Puts a copy in its place, whole or not at all; False when the file changed meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if frozen.size > shutil.disk_usage(target.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    part = target.parent / f".{uuid4().hex}.part"
    try:
        with part.open("xb") as copy:
            if _copy(source, copy, frozen.size) != frozen.sha256:
                return False
            copy.flush()
            os.fchmod(copy.fileno(), 0o444)
            os.fsync(copy.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    return True


def _link(file: Path, target: Path) -> bool:
    """Gives a file a second name; False where it has to be copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # a copy that was damaged gives way: the link takes its place at once
    name = target.parent / f".{uuid4().hex}.part"
    try:
        os.link(file, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    try:
        name.replace(target)
    finally:
        name.unlink(missing_ok=True)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)
    return True


def _copy(source: BufferedReader, copy: BinaryIO, size: int) -> str:
    """Copies a file of `size` bytes and says what was copied; one byte more tells that it grew."""
    digest = hashlib.sha256()
    left = size + 1
    source.seek(0)
    while left and (chunk := source.read(min(_CHUNK, left))):
        copy.write(chunk)
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _unwritable(error: OSError, name: str, size: int, store: Path) -> LocoError:
    if error.errno in _FULL:
        return DiskFull(
            f"There is no space for a copy of {name!r} ({size / 1e6:.1f} MB) in {store}: "
            f"{error.strerror}.",
            hint="Free disk space there and submit the job again.",
        )
    return LocoError(
        f"{name!r} cannot be copied to {store}: {error.strerror}.",
        hint=f"Allow the server's user to write to {store}. It holds the files that jobs read.",
    )
