"""What several attacks start from."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from loco.contracts.keys import Scope
from loco.ledger.keys import Keys


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Iterator[Keys]:
    """The API keys of the test's ledger."""
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()


@pytest.fixture
def login(live_api, keys) -> Iterator[Callable[..., httpx.Client]]:
    """A client with a key of its own: `login("anna")`, `login("root", Scope.ADMIN)`."""
    opened: list[httpx.Client] = []

    def log_in(owner: str, scope: Scope = Scope.SUBMIT) -> httpx.Client:
        _, key = keys.create(f"{owner}'s laptop", scope=scope, owner=owner)
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.Client(base_url=live_api.url, trust_env=False, timeout=60, headers=headers)
        opened.append(client)
        return client

    yield log_in
    for client in opened:
        client.close()
