"""Which servers of this user run on this machine: `loco up` says so, and every command looks.

In its data folder `loco up` leaves `up.json`: where its services listen. Below the user's state folder it
leaves a note which data folder that is, so that commands find it from any other folder. The state folder, and
not XDG_RUNTIME_DIR, as that one is emptied when the user logs out, and a server may go on. What another user
could have written is not believed: an API key would follow the address in it.
"""

import errno
import hashlib
import os
import socket
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from loco.contracts.addresses import is_loopback
from loco.contracts.base import Contract
from loco.contracts.errors import InvalidRequest
from loco.settings import Settings, variables_here

#: In the data folder while `loco up` runs.
UP_FILE = "up.json"
#: Either file has some hundred bytes.
_LARGEST_BYTES = 64 * 1024
#: Notes that are looked at.
_MOST_NOTES = 100
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Up(Contract):
    """What a running `loco up` says about itself."""

    server: str = Field("", description="Address of the API.")
    redis_url: str | None = Field(None, description="Address of its Redis.")
    ollama_host: str | None = Field(None, description="Address of Ollama, for register and eval.")
    data_dir: Path | None = Field(None, description="Its data folder.")
    adapters_dir: Path | None = Field(None, description="Its recipes.")
    pid: int | None = Field(None, description="Process of `loco up`.")
    born: str = Field("", description="Boot of the machine and time when that process started.")
    pids: dict[str, int] = Field({}, description="Processes of its services.")

    @property
    def alive(self) -> bool:
        """Whether that process still runs; one that says nothing about itself is believed to."""
        if self.pid is None:
            return True
        if self.born:
            return self.born == born(self.pid)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def applied_to(self, settings: Settings) -> Settings:
        """The settings with the folders of this server."""
        folders = {"data_dir": self.data_dir, "adapters_dir": self.adapters_dir}
        return settings.model_copy(update={n: f for n, f in folders.items() if f is not None})


class _Note(Contract):
    """What lies in the state folder."""

    data_dir: Path

    @classmethod
    def read(cls, path: Path) -> Self | None:
        content = _own_file(path)
        return None if content is None else cls.model_validate_json(content, extra="ignore")


def born(pid: int) -> str:
    """What tells a process from a later one of the same number; empty: it is gone, or there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state, *rest = fields.rpartition(")")[2].split()  # a name may hold blanks and brackets
    return "" if state in "ZX" else f"{boot}:{rest[18]}"


def up_in(data_dir: Path) -> Up | None:
    """The server that runs on a data folder; None: none, or nothing this user may read.

    Raises:
        InvalidRequest: the file is a link, another user's, or others may write it.
    """
    content = _own_file(data_dir / UP_FILE)
    if content is None:
        return None
    try:
        up = Up.model_validate_json(content, extra="ignore")
    except ValidationError:  # half a file, of a full disk
        return None
    up = up.model_copy(update={"data_dir": up.data_dir or data_dir.absolute()})
    return up if up.alive else None


def own_ups(environment: Mapping[str, str] = os.environ) -> list[Up]:
    """The servers of this user on this machine, from whatever folder; what is not believed is passed over."""
    found: dict[str, Up] = {}
    for path in sorted(_notes(environment))[:_MOST_NOTES]:
        with suppress(InvalidRequest, ValidationError):
            note = _Note.read(path)
            if note and (up := up_in(note.data_dir)) and up.server:
                found[up.server] = up
    return [found[server] for server in sorted(found)]


def this_up(environment: Mapping[str, str] = os.environ) -> Up | None:
    """The server meant where none is named: of this data folder, else the only one of this user.

    Whoever says LOCO_DATA_DIR means that folder and no other.

    Raises:
        InvalidRequest: the user has several; or see `up_in`.
    """
    variables = variables_here(environment)
    here = up_in(Settings.from_environment(variables).data_dir)
    if here is not None or variables.get("LOCO_DATA_DIR"):
        return here
    own = own_ups(environment)
    if len(own) > 1:
        raise InvalidRequest(
            "Several of your servers run here: "
            + ", ".join(f"{up.server} (data in {up.data_dir})" for up in own)
            + ".",
            param="server",
            hint=f"Choose one: --server {own[0].server}, or export LOCO_SERVER.",
        )
    return own[0] if own else None


def up_at(server: str, environment: Mapping[str, str] = os.environ) -> Up | None:
    """The running server of this user that listens at an address.

    Raises:
        InvalidRequest: see `up_in`.
    """
    here = up_in(Settings.from_environment(variables_here(environment)).data_dir)
    known = [*([here] if here else []), *own_ups(environment)]
    return next((up for up in known if _is_same(up.server, server)), None)


def _is_same(one: str, other: str) -> bool:
    """Whether two addresses are one, by whatever name of this machine."""
    a, b = urlsplit(one), urlsplit(other)
    hosts = a.hostname == b.hostname or (is_loopback(a.hostname) and is_loopback(b.hostname))
    return hosts and (a.scheme, a.port, a.path.rstrip("/")) == (
        b.scheme,
        b.port,
        b.path.rstrip("/"),
    )


def note_path(data_dir: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The user's note that a server runs on a data folder; of this machine, as homes are shared."""
    folder = hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:16]
    return notes_dir(environment) / f"{socket.gethostname()}-{folder}.json"


def note_text(data_dir: Path) -> str:
    """What that note says."""
    return _Note(data_dir=data_dir.absolute()).model_dump_json() + "\n"


def notes_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the notes lie: below XDG_STATE_HOME, which has to be absolute, else ~/.local/state."""
    state = Path(environment.get("XDG_STATE_HOME") or "")
    if not state.is_absolute():
        state = Path(environment.get("HOME") or Path.home()) / ".local" / "state"
    return state / "locollm"


def stale_notes(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Notes of this machine whose server is gone."""
    stale = []
    for path in _notes(environment):
        try:
            note = _Note.read(path)
            gone = note is None or up_in(note.data_dir) is None
        except (InvalidRequest, ValidationError):
            continue
        if gone:
            stale.append(path)
    return stale


def _notes(environment: Mapping[str, str]) -> list[Path]:
    folder = notes_dir(environment)
    with suppress(OSError):
        return list(folder.glob(f"{socket.gethostname()}-*.json"))
    return []


def _own_file(path: Path) -> bytes | None:
    """The content of a file that only this user can have written; None: there is none to read.

    Raises:
        InvalidRequest: it is there, and somebody else may have written it.
    """
    try:
        # O_NONBLOCK: a pipe would hold the command
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _distrusted(path, "it is a link") from error
        return None
    with open(opened, "rb") as file:
        found = os.fstat(opened)
        if not stat.S_ISREG(found.st_mode):
            raise _distrusted(path, "it is not a file")
        for place, what in ((path, found), (path.parent, path.parent.stat())):
            if what.st_uid != os.getuid():
                raise _distrusted(path, f"{place} belongs to uid {what.st_uid}")
            if what.st_mode & _OTHERS_WRITE:
                raise _distrusted(path, f"others may write to {place}")
        return file.read(_LARGEST_BYTES)


def _distrusted(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} was not used: {why}.",
        param="server",
        hint="Choose the server yourself: --server, or export LOCO_SERVER.",
    )
