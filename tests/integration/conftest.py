"""The real API over HTTP with a ledger of its own, and hands that do a worker's part."""

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from celery import Celery

from loco.artifacts import Artifact, describe
from loco.events import Progress
from loco.jobs import Failure
from loco.ledger import Claim, Ledger
from loco.queue import celery_app, close_queue
from loco.settings import Settings
from loco.stages import Stage
from loco_api.__main__ import Server, build, server


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """A queue that hints are sent to."""
    app = celery_app(settings)
    yield app
    close_queue(app)


class ApiServer:
    """The API in a thread of this process; `stop` and `start` again keep its address."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://127.0.0.1:{settings.port}"
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serves, and returns once it answers."""
        self._server = server(build(self.settings))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the API does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """Ends like a server that is told to: streams are closed, requests finished."""
        if self._server is not None and self._thread is not None:
            self._server._streams.close()
            self._server.should_exit = True
            self._thread.join(30)
            assert not self._thread.is_alive(), "the API does not stop"
            self._server = None


class Hands:
    """Does a worker's part through the ledger, at the test's pace."""

    def __init__(self, ledger: Ledger, adapters_dir: Path) -> None:
        self.ledger = ledger
        self._adapters_dir = adapters_dir

    def claim(self, stage: Stage) -> Claim:
        """Takes the stage that is due, which must be `stage`."""
        claim = self.ledger.claim(stage.queue, worker_id="hands", nonce=uuid.uuid4().hex)
        assert claim is not None, f"nothing is ready on queue {stage.queue}"
        assert claim.stage is stage
        return claim

    def commit(
        self, claim: Claim, result: dict[str, object], files: dict[str, bytes] | None = None
    ) -> list[Artifact]:
        """Commits a result, and files by name and content."""
        run = self._adapters_dir / claim.job.adapter / "runs" / claim.job_id
        artifacts = []
        for name, content in (files or {}).items():
            path = run / claim.stage / f"a{claim.token}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            artifacts.append(describe(self._adapters_dir, path, name=name, stage=claim.stage))
        self.ledger.commit(
            claim.task_id,
            claim.token,
            result={"seconds": 1.0, "files": {}, **result},
            artifacts=tuple(artifacts),
            fingerprint=uuid.uuid4().hex,
        )
        return artifacts

    def progress(self, claim: Claim, **fields: float | str) -> None:
        """Reports progress."""
        assert self.ledger.progress(claim.task_id, claim.token, Progress.model_validate(fields))

    def fail(self, claim: Claim, message: str, hint: str | None = None) -> None:
        """Ends the job with an error."""
        failure = Failure(
            code="training_failed",
            message=message,
            hint=hint,
            stage=claim.stage,
            attempt=claim.attempt,
            user_fault=False,
        )
        assert self.ledger.fail(claim.task_id, claim.token, failure, retryable=False)


class Cable:
    """A wire between a client and a server that can be cut.

    Attributes:
        url: what the client takes for the server.
        heads: the head of every request, in order.
        cut_after: bytes of an answer after which the next connection breaks, once for each entry.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[str] = []
        self.cut_after: list[int] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Takes no more connections; open ones end with their server or client."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(("127.0.0.1", self._upstream_port)) as far:
            back = threading.Thread(target=self._carry_back, args=(far, near), daemon=True)
            back.start()
            with suppress(OSError):
                while data := near.recv(65536):
                    self.heads.append(data.decode("latin-1"))
                    far.sendall(data)
            _hang_up(far)
            back.join(10)

    def _carry_back(self, far: socket.socket, near: socket.socket) -> None:
        left = None
        with suppress(OSError):
            while data := far.recv(65536):
                if left is None and self.cut_after:
                    left = self.cut_after.pop(0)
                if left is not None and len(data) >= left:
                    near.sendall(data[:left])
                    break
                left = left - len(data) if left is not None else None
                near.sendall(data)
        _hang_up(near)


def _hang_up(side: socket.socket) -> None:
    with suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def live_settings(redis_url: str, namespace: str, adapters_dir: Path, tmp_path: Path) -> Settings:
    """Settings of an API of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return Settings(
        port=port,
        data_dir=tmp_path / "data",
        adapters_dir=adapters_dir,
        redis_url=redis_url,
        namespace=namespace,
        ollama_host="http://127.0.0.1:9",
    )


@pytest.fixture
def live_api(live_settings: Settings) -> Iterator[ApiServer]:
    """A running API."""
    running = ApiServer(live_settings)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def hands(ledger: Ledger, adapters_dir: Path) -> Hands:
    """Whoever does the worker's part."""
    return Hands(ledger, adapters_dir)


@pytest.fixture
def cable(live_api: ApiServer) -> Iterator[Cable]:
    """A wire to the running API."""
    wire = Cable(live_api.settings.port)
    yield wire
    wire.close()
