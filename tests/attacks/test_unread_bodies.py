"""Bodies of people without a key take the server's memory and time.

Before: FastAPI read the whole body, up to 1 MiB, before it looked at the key.
"""

import socket

import pytest

pytestmark = pytest.mark.redis

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{more}\r\n\r\n"


def ask(port: int, head: str) -> bytes:
    """Sends a head and nothing more; answers what comes until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        wire.sendall(head.encode("latin-1"))
        heard = b""
        while data := wire.recv(65536):
            heard += data
    return heard


@pytest.mark.parametrize("path", ["/jobs", "/plan", "/keys", "/nothing"])
@pytest.mark.parametrize(
    "more",
    [
        "Content-Length: 1048576",
        "Content-Length: 1048576\r\nExpect: 100-continue",
        "Content-Length: 1048576\r\nAuthorization: Bearer loco_wrong",
        "Transfer-Encoding: chunked",
    ],
)
def test_a_body_without_a_key_is_refused_at_its_head(live_api, keys, path, more):
    keys.create("laptop")
    heard = ask(live_api.settings.port, HEAD.format(path=path, more=more))
    assert heard.startswith(b"HTTP/1.1 401 "), "not a 100, and nothing waited for"
    assert b"\r\nconnection: close\r\n" in heard.lower()
    assert b'"code": "unauthorized"' in heard


def test_a_page_of_another_site_is_refused_at_the_head_too(live_api):
    more = "Content-Length: 1048576\r\nOrigin: https://evil.example"
    heard = ask(live_api.settings.port, HEAD.format(path="/jobs", more=more))
    assert heard.startswith(b"HTTP/1.1 403 ")


def test_a_short_body_does_not_cost_the_connection(live_api, keys):
    """So a client whose key has expired reads why, whatever it has sent already."""
    keys.create("laptop")
    head = HEAD.format(path="/jobs", more="Content-Length: 2")
    with socket.create_connection(("127.0.0.1", live_api.settings.port), timeout=60) as wire:
        for _ in range(2):
            wire.sendall(head.encode() + b"{}")
            heard = wire.recv(65536)
            while b"\r\n\r\n" not in heard or not heard.endswith(b"}"):
                heard += wire.recv(65536)
            assert heard.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" not in heard.lower()
