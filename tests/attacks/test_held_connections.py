"""Clients that open connections and hold on to them.

1,100 half-open connections at `ulimit -n 1024` stopped the server and had it log 720 MB in 80 s; a
head or body that never ended, and an answer that nobody read, were waited for without end. So were,
later, a body that began behind a whole request, and the end of an answer after which the server closes.
"""

import contextlib
import json
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from loco.settings import Settings
from loco_api.__main__ import build, server
from loco_api.connections import BoundedProtocol, Limits, limits_here, protocol

pytestmark = pytest.mark.redis

QUICK = Limits(request_seconds=2, write_seconds=5, connections=8, per_address=6)
#: More than the buffers of two sockets and of the server hold.
ANSWER_BYTES = 64 << 20
#: More than the sockets hold, and too little for the server to wait with what it writes.
SHORT_BYTES = 60_000


class App:
    """Reads the body of a request, then answers with `ANSWER_BYTES`; says what became of it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        if message["type"] == "http.disconnect":
            self.said.append("cut off")
            return
        size = {"/large": ANSWER_BYTES, "/short": SHORT_BYTES}.get(scope["path"], 2)
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        chunk = b"x" * min(size, 1 << 20)
        for start in range(0, size, len(chunk)):
            await send(
                {
                    "type": "http.response.body",
                    "body": chunk,
                    "more_body": start + len(chunk) < size,
                }
            )
        self.said.append("answered")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def serve_uvicorn() -> Iterator[Callable[[uvicorn.Config], int]]:
    """Runs a server in a thread; gives its port. The buffers of its sockets are small."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(config: uvicorn.Config) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        one = uvicorn.Server(config)
        thread = threading.Thread(target=one.run, args=([listener],))
        thread.start()
        running.append((one, thread))
        deadline = time.monotonic() + 60
        while not one.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int(listener.getsockname()[1])

    yield serve
    for one, thread in running:
        one.should_exit = True
        one.force_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def bounded() -> type[BoundedProtocol]:
    return protocol(QUICK)


@pytest.fixture
def port(
    app: App, bounded: type[BoundedProtocol], serve_uvicorn: Callable[[uvicorn.Config], int]
) -> int:
    return serve_uvicorn(
        uvicorn.Config(
            app,
            http=bounded,
            ws="none",
            lifespan="off",
            timeout_keep_alive=4,
            log_config=None,
        )
    )


@pytest.fixture
def client(port: int) -> Iterator[Callable[[bytes], socket.socket]]:
    """Opens a connection and sends the beginning of something."""
    with contextlib.ExitStack() as opened:

        def connect(data: bytes) -> socket.socket:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            opened.enter_context(connection)
            connection.settimeout(60)
            connection.sendall(data)
            return connection

        yield connect


def is_cut(connection: socket.socket) -> bool:
    """Whether the server ends the connection, within the socket's timeout."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return True


def whole(connection: socket.socket) -> bytes:
    """A short answer."""
    received = b""
    while not received.endswith(b"xx"):
        received += connection.recv(1000)
    return received


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        # what begins behind a whole request
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHo",
    ],
)
def test_a_request_that_does_not_end_is_cut_off(
    client: Callable[[bytes], socket.socket], beginning: bytes
) -> None:
    assert is_cut(client(beginning))


def test_one_that_trickles_is_cut_off_too(client: Callable[[bytes], socket.socket]) -> None:
    connection = client(b"GET / HTTP/1.1\r\n")
    for _ in range(600):
        try:
            connection.sendall(b"X-A: b\r\n")
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("it may trickle for a minute")


def test_one_that_comes_in_parts_in_time_is_answered(
    client: Callable[[bytes], socket.socket], app: App
) -> None:
    connection = client(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
    time.sleep(0.1)
    connection.sendall(b"34")
    assert whole(connection).startswith(b"HTTP/1.1 200 OK")
    # and the next on the same connection, after a pause that is longer than a request may take
    time.sleep(2.5)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert whole(connection).startswith(b"HTTP/1.1 200 OK")


def test_half_a_request_behind_a_whole_one_is_cut_off(
    client: Callable[[bytes], socket.socket],
) -> None:
    half = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1"
    connection = client(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + half)
    assert whole(connection).startswith(b"HTTP/1.1 200 OK")
    assert is_cut(connection)


def test_an_answer_that_nobody_reads_is_given_up(
    client: Callable[[bytes], socket.socket], app: App
) -> None:
    connection = client(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.recv(10)
    deadline = time.monotonic() + 60
    while not app.said:  # the application goes on, and its connection is closed, not only dropped
        assert time.monotonic() < deadline
        time.sleep(0.05)
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 20):
            received += len(chunk)
    assert received < ANSWER_BYTES


def test_the_end_of_one_is_given_up_too(
    client: Callable[[bytes], socket.socket], app: App, bounded: type[BoundedProtocol]
) -> None:
    client(b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    deadline = time.monotonic() + 60
    while not app.said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while bounded.count.by_address.total():  # all is written, and waits for a client that reads
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_is_read_slowly_but_steadily_arrives(
    client: Callable[[bytes], socket.socket],
) -> None:
    connection = client(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    received = 0
    while chunk := connection.recv(1 << 22):
        received += len(chunk)
    assert received > ANSWER_BYTES


def test_too_many_of_one_address_are_dropped_and_others_served(
    client: Callable[[bytes], socket.socket], port: int
) -> None:
    for _ in range(QUICK.per_address):
        client(b"GET / HT")
    over = client(b"")
    began = time.monotonic()
    assert is_cut(over)
    assert time.monotonic() - began < 30
    # the held ones are let go after their time, and the address is served again
    until_answered(f"http://127.0.0.1:{port}/")


def test_what_is_no_http_is_refused_in_the_form_of_the_api(
    client: Callable[[bytes], socket.socket],
) -> None:
    answered = b""
    connection = client(b"GET /\0 HTTP/1.1\r\n\r\n")
    while chunk := connection.recv(1000):
        answered += chunk
    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error"]["code"] == "invalid_request"


#: As few files as the server can start with, and no limit on connections but that.
STARVED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
import uvicorn
from loco_api.__main__ import Server
from loco_api.connections import Limits, protocol
from loco_api.streams import Streams
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"xx"})
http = protocol(Limits(connections=10**6, per_address=10**6))
config = uvicorn.Config(app, port=int(sys.argv[1]), http=http, ws="none", lifespan="off")
Server(config, Streams(None, "")).run()
"""


def test_a_server_without_files_left_neither_fills_the_log_nor_dies(
    tmp_path: Path, free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}/"
    log = tmp_path / "log"
    with log.open("wb") as out:
        served = subprocess.Popen(
            [sys.executable, "-c", STARVED, str(free_port)], stdout=out, stderr=out
        )
    try:
        until_answered(url)
        with contextlib.ExitStack() as held:
            for _ in range(80):
                held.enter_context(socket.create_connection(("127.0.0.1", free_port)))
            deadline = time.monotonic() + 60
            while not re.search(
                "no connection can be taken|out of system resource", log.read_text()
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        until_answered(url)
        assert log.stat().st_size < 20_000, log.read_text()[:2000]
        served.terminate()
        assert served.wait(60) == 0
    finally:
        served.kill()
        served.wait()


def until_answered(url: str) -> None:
    """Asks until there is an answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(url, trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_there_are_fewer_connections_than_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        found = limits_here(Limits(connections=10**9))
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised in (hard, resource.RLIM_INFINITY)
        if raised != resource.RLIM_INFINITY:
            assert 2 * found.connections < raised  # each may have a file open
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_api_has_these_limits(live_settings: Settings) -> None:
    context = build(live_settings)
    http = server(context, QUICK).config.http
    assert isinstance(http, type)
    assert issubclass(http, BoundedProtocol)
    assert http.limits == QUICK
