"""Committed files are read-only, and verified wherever one is used.

That is by a later stage, in place of a run, by a download, when it is published. A published file is the committed one under another name, so an editor that writes in place changes
both. The mode 0444 stops most of that. Against the rest a file's SHA-256 is compared with the
ledger's, once in a process for each state of the file: size, inode, and the times of the last change
of content and of anything (mtime, ctime). That is enough, since every write sets ctime to the
present, and no call sets it to another time (utime sets mtime alone): a file of the same state has
the same bytes. Hashing takes 1 to 2 s a GB, a look at the state 35 microseconds.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from loco.contracts.artifacts import Artifact, describe
from loco.contracts.errors import ArtifactChanged, NotFound, UnsafePath
from loco.contracts.files import sha256_of
from loco.contracts.paths import inside
from loco.contracts.stages import Stage

#: Nobody writes, everybody reads: others may serve these files.
READ_ONLY = 0o444
#: A state is trusted when it is older than this: the clocks of file systems tick, so two writes
#: within a tick (10 ms in a kernel, 2 s on the coarsest disk) leave one state.
_SETTLED_SECONDS = 2.0
#: Files whose digests are remembered.
_REMEMBERED = 4096

logger = logging.getLogger(__name__)


class _State(NamedTuple):
    size: int
    inode: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        found = path.stat()
        return cls(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


class _Digests:
    """SHA-256 of files, remembered while their state is the same."""

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[_State, str]] = OrderedDict()
        self._lock = threading.Lock()
        #: Several downloads that begin at once read a file once.
        self._reading = threading.Lock()

    def of(self, path: Path) -> str:
        """The digest of a file's present content.

        Raises:
            OSError: it cannot be read.
        """
        known = self._look(path)
        if known is None:
            with self._reading:
                known = self._look(path) or self._read(path)
        return known

    def forget(self) -> None:
        """Reads every file again."""
        with self._lock:
            self._known.clear()

    def _look(self, path: Path) -> str | None:
        state = _State.of(path)
        with self._lock:
            known = self._known.get(path)
            if known is None or known[0] != state:
                return None
            self._known.move_to_end(path)
            return known[1]

    def _read(self, path: Path) -> str:
        before = _State.of(path)
        digest = sha256_of(path)
        settled = time.time_ns() - before.ctime_ns > _SETTLED_SECONDS * 1e9
        if settled and _State.of(path) == before:
            with self._lock:
                self._known[path] = (before, digest)
                self._known.move_to_end(path)
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return digest


#: One a process: workers and the API verify the same files again and again.
digests = _Digests()


def sealed(adapters_dir: Path, path: Path, *, name: str, stage: Stage) -> Artifact:
    """Makes a file read-only and describes it, for its commit.

    Args:
        adapters_dir: the file lies below it.
        path: the file.
        name: name within the stage.
        stage: the stage that wrote it.
    """
    make_read_only(path)
    return describe(adapters_dir, path, name=name, stage=stage)


def make_read_only(path: Path) -> None:
    """Takes everybody's right to write; some disks have no modes, then verifying has to do."""
    with suppress(OSError):
        path.chmod(READ_ONLY)


def verified(adapters_dir: Path, artifact: Artifact) -> Path:
    """The place of a committed file that is what was committed.

    Raises:
        NotFound: it is gone, or what lies there leads out of the adapters folder.
        ArtifactChanged: it is there with another content.
    """
    try:
        path = inside(adapters_dir, artifact.path)
        digest = digests.of(path) if os.path.isfile(path) else None
    except (UnsafePath, FileNotFoundError):
        digest = None
    if digest is None:
        raise NotFound(
            f"{artifact.path}, written by stage {artifact.stage}, is missing.",
            hint=f"Run stage {artifact.stage} again: submit a job that starts with it.",
        )
    if digest != artifact.sha256:
        raise _changed(artifact, digest)
    return path


def _changed(artifact: Artifact, digest: str) -> ArtifactChanged:
    now = f"its SHA-256 was {artifact.sha256} and is {digest} now."
    if artifact.stage is None:
        return ArtifactChanged(
            f"{artifact.path} changed after the job was accepted: {now}",
            hint="Submit the job again. It then uses the file as it is now.",
        )
    return ArtifactChanged(
        f"{artifact.path} changed after stage {artifact.stage} finished: {now}",
        hint=f"Run stage {artifact.stage} again: submit a job that starts with it. To train on "
        "edited rows, edit a copy and name it as prepare's source (kind: jsonl).",
    )


def intact(adapters_dir: Path, artifacts: Iterable[Artifact]) -> bool:
    """Whether all files are there as they were committed; says which is not."""
    try:
        for artifact in artifacts:
            verified(adapters_dir, artifact)
    except (NotFound, ArtifactChanged) as error:
        logger.warning("Not reused: %s", error)
        return False
    return True
