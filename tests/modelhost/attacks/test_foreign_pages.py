"""A web page speaks to the model host behind its reader's back.

`POST /api/create` from a foreign Origin replaced `locollm-math:latest`; bodies had no end.
"""

import asyncio
import socket
from pathlib import Path

import pytest

from loco_modelhost.api import guard
from loco_modelhost.store.store import Store

CHANGES = ["/api/create", "/api/copy", "/api/chat", "/api/generate", "/api/blobs/sha256:0"]


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1.evil.example",
        "null",
        "http://[::1",
        "ftp://127.0.0.1",
    ],
)
def test_a_page_from_elsewhere_is_refused(own_host, path: str, origin: str) -> None:
    answer = own_host.http.post(path, json={"model": "x"}, headers={"Origin": origin})
    assert answer.status_code == 403


def test_so_are_reading_and_deleting(own_host) -> None:
    foreign = {"Origin": "https://evil.example"}
    assert own_host.http.get("/api/tags", headers=foreign).status_code == 403
    assert own_host.http.request("DELETE", "/api/delete", headers=foreign).status_code == 403
    assert own_host.http.request("OPTIONS", "/api/create", headers=foreign).status_code == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_local_page_asks_before_it_changes_anything(own_host, kind: str) -> None:
    headers = {"Origin": "http://localhost:3000", "Content-Type": kind}
    answer = own_host.http.post("/api/copy", content=b"{}", headers=headers)
    assert answer.status_code == 415


def test_a_page_may_not_leave_the_type_out(own_host) -> None:
    """A browser sends a Blob without a type so, and does not ask before."""
    answer = own_host.http.post(
        "/api/copy", content=b"{}", headers={"Origin": "http://localhost:3000"}
    )
    assert answer.status_code == 415


def test_programs_and_pages_of_this_machine_go_on(own_host) -> None:
    body = b'{"model": "smollm2:135m"}'
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # as `curl -d` says
    assert own_host.http.post("/api/show", content=body, headers=form).status_code == 200
    for origin in ("http://localhost:3000", "http://127.0.0.1", "app://obsidian.md"):
        headers = {"Origin": origin, "Content-Type": "application/json"}
        assert own_host.http.post("/api/show", content=body, headers=headers).status_code == 200


def test_a_name_that_points_here_is_refused(own_host) -> None:
    assert own_host.http.get("/api/tags", headers={"Host": "evil.example"}).status_code == 403


def test_a_body_has_an_end(own_host) -> None:
    for path in ("/api/chat", "/api/blobs/sha256:" + "0" * 64):
        with socket.create_connection(("127.0.0.1", own_host.http.base_url.port), 60) as client:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**15}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413")

    def endless():
        for _ in range(guard.LARGEST_BODY // (1 << 20) + 2):
            yield b"x" * (1 << 20)

    answer = own_host.http.post("/api/chat", content=endless())
    assert answer.status_code == 413
    assert own_host.http.get("/api/version").status_code == 200


def test_what_is_stored_is_its_users_alone(tmp_path: Path) -> None:
    with Store(tmp_path).new_blob() as blob:
        blob.write(b"private")
        blob.keep()
    [path] = (tmp_path / "blobs").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    """Through the guard alone, with little patience; what was uploaded so far is gone."""
    store = Store(tmp_path)

    async def app(scope, receive, send) -> None:
        with store.new_blob() as blob:
            while (message := await receive()).get("more_body"):
                blob.write(message["body"])
            blob.keep()

    async def ask(path: str, pieces: list[bytes]) -> int:
        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"localhost")],
                 "scheme": "http", "server": ("localhost", 1), "query_string": b""}  # fmt: skip
        coming, sent = iter(pieces), []

        async def receive():
            if (piece := next(coming, None)) is None:
                await asyncio.sleep(1000)
            return {"type": "http.request", "body": piece, "more_body": True}

        async def send(message) -> None:
            sent.append(message)

        await guard.Guard(app, host="127.0.0.1", folder=tmp_path, patience=0.2)(
            scope, receive, send
        )
        return sent[0]["status"]

    for path in ("/api/chat", "/api/blobs/sha256:0"):
        assert asyncio.run(ask(path, [b"x"] * 3)) == 408
        assert list((tmp_path / "blobs").iterdir()) == []
