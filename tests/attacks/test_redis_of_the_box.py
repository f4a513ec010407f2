"""Another user of the machine talks to the bundled Redis.

It listened on a loopback port without a password: any local user made itself an API key, and forged
tasks. It listens on a socket now that only its own user may open, and on no port.
"""

import multiprocessing
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from loco.box import redis_server
from loco.box.redis_server import RedisServer

pytestmark = pytest.mark.redis

NOBODY = 65534


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir(mode=0o755)
    server = redis_server.start(tmp_path / "redis")
    yield server
    server.stop()


def test_it_listens_on_no_port(server: RedisServer) -> None:
    descriptors = Path(f"/proc/{server.process.pid}/fd")
    open_sockets = {os.readlink(link) for link in descriptors.iterdir()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]
        inodes = {f"socket:[{line.split()[9]}]" for line in lines}
        assert not inodes & open_sockets, table


def test_only_its_user_may_open_its_socket_and_files(server: RedisServer, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700
    for path in (tmp_path / "redis").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_ISSOCK(socket_of(server).stat().st_mode)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_kept_out(server: RedisServer) -> None:
    assert connects(server, as_user=0) == "connected"
    assert connects(server, as_user=NOBODY) == "PermissionError"


def socket_of(server: RedisServer) -> Path:
    return Path(unquote(urlsplit(server.url).path))


def connects(server: RedisServer, *, as_user: int) -> str:
    """What a process of this user gets when it opens the socket."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_connect, args=(far, str(socket_of(server)), as_user))
    process.start()
    answer = str(near.recv())
    process.join()
    return answer


def _connect(answer: "multiprocessing.connection.Connection", path: str, user: int) -> None:
    os.setuid(user)
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError as error:
            answer.send(type(error).__name__)
        else:
            answer.send("connected")
