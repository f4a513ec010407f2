"""API keys on a real server."""

from collections.abc import Iterator

import pytest

from loco.contracts.errors import InvalidRequest, NotFound
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
    for name in ("", "x" * 101):
        with pytest.raises(InvalidRequest):
            keys.create(name)
    with pytest.raises(NotFound, match="nope"):
        keys.revoke("nope")
