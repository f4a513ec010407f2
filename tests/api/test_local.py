"""Which requests a server without keys takes for those of its own machine."""

import pytest
from starlette.datastructures import Headers

from loco.contracts.addresses import is_loopback
from loco.contracts.errors import Forbidden
from loco_api.auth import check_local


def headers(host: str, origin: str | None) -> Headers:
    return Headers({"Host": host, **({"Origin": origin} if origin is not None else {})})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "0.0.0.0",
        "::",
        "192.168.1.4",
        "neurocore",
        "localhost.evil.example",
        "127.0.0.1.x",
    ],
)
def test_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8321", None),
        ("localhost:8321", None),
        ("[::1]:8321", "http://localhost:3000"),
        ("LOCALHOST", "http://127.0.0.1:8321"),
    ],
)
def test_programs_of_this_machine_are_let_in(host, origin):
    check_local(headers(host, origin))


@pytest.mark.parametrize(
    ("host", "origin", "header"),
    [
        ("evil.example:8321", None, "Host"),
        ("", None, "Host"),
        ("127.0.0.1@evil.example", None, "Host"),
        ("[::1", None, "Host"),
        ("127.0.0.1:8321", "https://evil.example", "Origin"),
        ("127.0.0.1:8321", "null", "Origin"),
    ],
)
def test_web_pages_are_not(host, origin, header):
    with pytest.raises(Forbidden) as caught:
        check_local(headers(host, origin))
    assert caught.value.param == header
    assert "loco keys create" in str(caught.value.hint)
