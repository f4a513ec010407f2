"""Clients that open connections and hold on to them.

1,100 half-open connections at `ulimit -n 1024` stopped the server and had it log 720 MB in 80 s; a
head or body that never ended, and an answer that nobody read, were waited for without end.
"""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
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
        size = ANSWER_BYTES if scope["path"] == "/large" else 2
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
def serve_uvicorn() -> Iterator[Callable[[uvicorn.Config], None]]:
    """Runs a server in a thread."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(config: uvicorn.Config) -> None:
        one = uvicorn.Server(config)
        thread = threading.Thread(target=one.run)
        thread.start()
        running.append((one, thread))
        deadline = time.monotonic() + 60
        while not one.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    yield serve
    for one, thread in running:
        one.should_exit = True
        one.force_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def port(app: App, serve_uvicorn: Callable[[uvicorn.Config], None], free_port: int) -> int:
    serve_uvicorn(
        uvicorn.Config(
            app,
            port=free_port,
            http=protocol(QUICK),
            ws="none",
            lifespan="off",
            timeout_keep_alive=20,
            log_config=None,
        )
    )
    return free_port


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
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=5)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            assert answer.status_code == 200
            return


def test_there_are_fewer_connections_than_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        found = limits_here(Limits(connections=10**9))
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised in (hard, resource.RLIM_INFINITY)
        if raised != resource.RLIM_INFINITY:
            assert found.connections < raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_api_has_these_limits(live_settings: Settings) -> None:
    context = build(live_settings)
    http = server(context, QUICK).config.http
    assert isinstance(http, type)
    assert issubclass(http, BoundedProtocol)
    assert http.limits == QUICK
