"""A real Redis server for the whole run, and an empty ledger for each test."""

import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loco.box import redis_server
from loco.contracts.requests import JobRequest
from loco.contracts.specs import JobSpec
from loco.ledger.ledger import Ledger
from loco.recipes.resolve import resolve
from loco.settings import Settings, Timings

#: tests/fixtures: a running API with hands that do a worker's part; an NVIDIA driver; names of models;
#: a model host that is watched.
pytest_plugins = ["fuzzing", "live_api", "fake_nvml", "tags_server", "watched_ollama"]

REPOSITORY = Path(__file__).parents[1]
#: Rooms whose tests need torch or llama.cpp, and so the training venv.
_TRAIN = ("trainer", "modelhost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what runs in the training venv."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in _TRAIN:
            item.add_marker(pytest.mark.train)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """What tests start can be interrupted, also where the suite runs in the background.

    A shell starts what runs there with SIGINT ignored, and every program of it inherits that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No command of a test finds the servers of whoever runs the tests, nor leaves a note for them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port with the flags of production."""
    server = redis_server.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


class _Server(ThreadingHTTPServer):
    #: As many may connect at once as a stage asks at once.
    request_queue_size = 512


@pytest.fixture
def serve() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Starts an HTTP server of a handler's class on a free port; gives its address."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        server = _Server(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def namespace() -> str:
    """A Redis namespace nobody else uses."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def connect(redis_url: str, namespace: str) -> Iterator[Callable[..., Ledger]]:
    """Opens the test's ledger with other timings: `connect(lease=0.1)`."""
    opened: list[Ledger] = []

    def open_ledger(**timings: float) -> Ledger:
        ledger = Ledger.connect(
            redis_url, namespace=namespace, timings=Timings.model_validate(timings)
        )
        opened.append(ledger)
        return ledger

    yield open_ledger
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(connect: Callable[..., Ledger]) -> Ledger:
    """An empty ledger with production timings."""
    return connect()


@pytest.fixture
def spec() -> Callable[..., JobSpec]:
    """Makes the spec of a request for math: `spec(stages=("train",), from_job=ID)`."""

    def resolved(**request: object) -> JobSpec:
        body = {"adapter": "math", "profile": "tiny", **request}
        return resolve(REPOSITORY / "adapters", JobRequest.model_validate(body))

    return resolved


@pytest.fixture
def settings(redis_url: str, namespace: str, adapters_dir: Path, tmp_path: Path) -> Settings:
    """Settings of a process that works on the test's ledger and folders."""
    return Settings(
        redis_url=redis_url,
        namespace=namespace,
        adapters_dir=adapters_dir,
        data_dir=tmp_path / "data",
    )


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    """A folder with the recipes of the repository and their eval sets, to write to."""
    source = REPOSITORY / "adapters"
    target = tmp_path / "adapters"
    sets = [f for f in source.glob("*/*.jsonl") if f.name != "training_data.jsonl"]
    for path in [source / "base_models.yaml", *source.glob("*/adapter.yaml"), *sets]:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return target


@pytest.fixture
def free_port() -> int:
    """A TCP port nobody listens on right now."""
    return unused_port()


def unused_port() -> int:
    """A TCP port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
