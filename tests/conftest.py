"""A real Redis server for the whole run, and an empty ledger for each test."""

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from loco import redis_server
from loco.ledger import Ledger
from loco.settings import Timings


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port with the flags of production."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"), free_port())
    yield server.url
    server.stop()


@pytest.fixture
def namespace() -> str:
    """A Redis namespace nobody else uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def ledger(redis_url: str, namespace: str) -> Iterator[Ledger]:
    """An empty ledger with production timings."""
    ledger = Ledger.connect(redis_url, namespace=namespace, timings=Timings())
    yield ledger
    ledger.close()


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    """A folder with the recipes of the repository, to write to."""
    source = Path(__file__).parents[1] / "adapters"
    target = tmp_path / "adapters"
    for path in [source / "base_models.yaml", *source.glob("*/adapter.yaml")]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target


def free_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
