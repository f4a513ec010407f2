"""What several attacks start from."""

from collections.abc import Iterator

import pytest

from loco.ledger.keys import Keys


@pytest.fixture
def keys(redis_url: str, namespace: str) -> Iterator[Keys]:
    """The API keys of the test's ledger."""
    keys = Keys.connect(redis_url, namespace=namespace)
    yield keys
    keys.close()
