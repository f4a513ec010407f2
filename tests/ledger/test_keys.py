"""API keys on a real server."""

import hashlib
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from loco.contracts.errors import InvalidRequest, NotFound
from loco.contracts.keys import Scope, lifetime_of
from loco.ledger.keys import Keys

pytestmark = pytest.mark.redis


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Iterator[Keys]:
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()


def test_a_key_opens_until_it_is_revoked(keys: Keys) -> None:
    assert not keys.any()
    info, plaintext = keys.create("laptop")
    assert keys.any()
    assert plaintext.startswith("loco_")
    assert len(plaintext) > 40
    assert keys.verify(plaintext) == info
    assert keys.revoke(info.id).id == info.id
    assert keys.verify(plaintext) is None
    assert not keys.any()


def test_keys_are_told_apart(keys: Keys) -> None:
    first, first_text = keys.create("one")
    second, second_text = keys.create("one")
    assert keys.list() == sorted([first, second], key=lambda k: (k.created_at, k.id))
    keys.revoke(first.id)
    assert keys.verify(first_text) is None
    assert keys.verify(second_text) == second


@pytest.mark.parametrize("wrong", ["", "loco_", "loco_x", "ключ", "x" * 10_000])
def test_anything_else_opens_nothing(keys: Keys, wrong: str) -> None:
    keys.create("laptop")
    assert keys.verify(wrong) is None


def test_the_text_is_not_stored(keys: Keys, namespace: str) -> None:
    _, plaintext = keys.create("laptop")
    with keys._connection.client() as client:
        stored = client.hgetall(f"{namespace}:keys")
    assert plaintext not in str(stored)
    assert len(stored) == 1


def test_wrong_names_and_ids_are_refused(keys: Keys) -> None:
    for name in ("", "x" * 101, "a\x1b[2J", "a\n", "\ud800"):
        with pytest.raises(InvalidRequest):
            keys.create(name)
    with pytest.raises(NotFound, match="nope"):
        keys.revoke("nope")


def test_scopes_include_the_ones_before() -> None:
    assert [[one.includes(other) for other in Scope] for one in Scope] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_key_says_whose_it_is_and_what_it_may(keys: Keys) -> None:
    plain, _ = keys.create("laptop")
    assert (plain.owner, plain.scope, plain.expires_at) == ("laptop", Scope.SUBMIT, None)
    month, text = keys.create("ci", scope=Scope.READ, owner="anna", lifetime=timedelta(days=30))
    assert (month.owner, month.scope) == ("anna", Scope.READ)
    assert month.expires_at == month.created_at + timedelta(days=30)
    assert keys.verify(text) == month


def test_a_key_ends_by_the_servers_clock(keys: Keys) -> None:
    info, text = keys.create("ci", lifetime=timedelta(milliseconds=1))
    deadline = time.monotonic() + 60
    while keys.verify(text) is not None:
        assert time.monotonic() < deadline
    assert [key.id for key in keys.list()] == [info.id], "it stays listed"
    assert keys.closed()


def test_last_use_is_written_once_a_minute(
    keys: Keys, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, text = keys.create("laptop")
    assert keys.list()[0].last_used_at is None
    keys.verify(text)
    used = keys.list()[0].last_used_at
    assert used is not None
    assert used >= info.created_at
    with keys._connection.client() as client:
        client.hset(f"{namespace}:keys:used", info.id, "1000")
        keys.verify(text)
        assert client.hget(f"{namespace}:keys:used", info.id) == "1000"
        monkeypatch.setattr("loco.ledger.keys._USED_SECONDS", 0)
        keys.verify(text)
        assert client.hget(f"{namespace}:keys:used", info.id) != "1000"
        keys.revoke(info.id)
        assert client.hgetall(f"{namespace}:keys:used") == {}


def test_keys_of_earlier_releases_may_do_everything(keys: Keys, namespace: str) -> None:
    old = '{"id": "0a1b2c3d", "name": "old", "created_at": "2026-01-01T00:00:00Z"}'
    with keys._connection.client() as client:
        client.hset(f"{namespace}:keys", hashlib.sha256(b"loco_old").hexdigest(), old)
    info = keys.verify("loco_old")
    assert info is not None
    assert (info.scope, info.owner) == (Scope.ADMIN, "old")
    assert keys.closed()


@pytest.mark.parametrize(
    "record",
    ["", "{", "[]", "7", "null", '{"id": 7}', '{"id": "a", "scope": "root"}', '{"id": ["a"]}'],
)
def test_a_record_that_cannot_be_read_opens_nothing(
    keys: Keys, namespace: str, record: str
) -> None:
    _, text = keys.create("laptop")
    with keys._connection.client() as client:
        client.hset(f"{namespace}:keys", hashlib.sha256(b"loco_bad").hexdigest(), record)
    assert keys.verify("loco_bad") is None
    assert keys.verify(text) is not None
    broken, good = keys.list()
    assert (broken.name, good.name) == ("(unreadable record)", "laptop")
    assert keys.revoke(broken.id) == broken
    assert len(keys.list()) == 1


@pytest.mark.parametrize("text", ["", "90", "d", "0d", "-1d", "1.5h", "90 d", "3651d", "9999999w"])
def test_no_such_time(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lifetime_of(text)
    assert caught.value.param == "expires"


def test_times() -> None:
    assert [lifetime_of(text) for text in ("30m", "12h", "90d", "26w")] == [
        timedelta(minutes=30),
        timedelta(hours=12),
        timedelta(days=90),
        timedelta(weeks=26),
    ]
