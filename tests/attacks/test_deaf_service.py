"""A request keeps a service busy for ever: it runs, hears no SIGTERM and answers nobody.

`POST /plan` with a batch of 10**18 did that to the API; `loco up` looked only at whether processes live.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loco.box import service as services
from loco.box.liveness import Ask, Patience, server_answers, worker_beats
from loco.box.service import Service
from loco.contracts.jobs import WorkerInfo
from loco.contracts.stages import Queue
from loco.ledger.ledger import Ledger

pytestmark = pytest.mark.redis

QUICK = Patience(every=0.1, answer=1, failures=3, start=60)

#: Answers, until it is asked for /deaf: then it computes for ever and lets no signal in.
SERVER = """
import signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/deaf":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            while True: pass
        self.send_response(404); self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    """Starts a service that is asked."""
    monkeypatch.setattr(services, "_FIRST_BACKOFF_SECONDS", 0.1)
    started: list[Service] = []

    def start(program: str, *arguments: str, ask: Ask, patience: Patience = QUICK) -> Service:
        service = Service(
            "child",
            [sys.executable, "-c", program, *arguments],
            environment=os.environ,
            log=tmp_path / "logs" / "child.log",
            stop_seconds=0.5,
            ask=ask,
            patience=patience,
        )
        started.append(service)
        service.start()
        return service

    yield start
    for service in started:
        service.kill()


def test_a_server_that_computes_for_ever_is_killed_and_started_again(
    run: Callable[..., Service], free_port: int
) -> None:
    heard: list[bool | None] = []
    service = run(SERVER, str(free_port), ask=_noted(free_port, heard))
    _tend(service, lambda _: True in heard)
    old = service.pid
    with socket.create_connection(("127.0.0.1", free_port)) as connection:
        connection.sendall(b"GET /deaf HTTP/1.0\r\n\r\n")
        said = _tend(service, lambda said: any("started again" in each for each in said))
    assert said[0].startswith(f"runs but does not answer (process {old}): asked to stop"), said
    assert said[1].startswith("was killed by SIGKILL"), said
    assert service.pid != old
    heard.clear()
    _tend(service, lambda _: True in heard)


def test_one_that_is_stopped_is_killed_though_no_sigterm_reaches_it(
    run: Callable[..., Service], free_port: int
) -> None:
    heard: list[bool | None] = []
    service = run(SERVER, str(free_port), ask=_noted(free_port, heard))
    _tend(service, lambda _: True in heard)
    assert service.pid is not None
    os.kill(service.pid, signal.SIGSTOP)
    said = _tend(service, lambda said: any("started again" in each for each in said))
    assert "killed by SIG" in said[1], said  # TERM was waiting, KILL came


def test_one_that_starts_slowly_is_left_alone(run: Callable[..., Service]) -> None:
    asked: list[int] = []

    def ask(pid: int) -> bool:
        asked.append(pid)
        return False

    service = run("import time; time.sleep(100)", ask=ask)
    assert _tend(service, lambda _: len(asked) > 2 * QUICK.failures) == []
    assert asked[0] == service.pid


def test_a_worker_is_known_by_its_heartbeat(ledger: Ledger, redis_url: str, namespace: str) -> None:
    ask = worker_beats(redis_url, namespace)
    assert ask(os.getpid()) is False
    ledger.heartbeat(
        WorkerInfo(
            id="cpu-here",
            queue=Queue.CPU,
            host=socket.gethostname(),
            pid=os.getpid(),
            device="cpu",
            seen_at=datetime.now(UTC),
        )
    )
    assert ask(os.getpid()) is True
    assert ask(os.getpid() + 1) is False


def test_a_machine_may_get_another_name(
    ledger: Ledger, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = worker_beats(redis_url, namespace)
    monkeypatch.setattr(socket, "gethostname", lambda: "a-cafe")
    test_a_worker_is_known_by_its_heartbeat(ledger, redis_url, namespace)
    assert ask(os.getpid()) is True


def test_a_question_that_fails_is_asked_again(
    run: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def ask(pid: int) -> bool:
        asked.append(pid)
        if len(asked) < 5:
            raise ValueError("a record that nobody foresaw")
        return len(asked) == 5

    service = run("import time; time.sleep(100)", ask=ask)
    said = _tend(service, lambda said: bool(said))
    assert "does not answer" in said[0]
    assert len(asked) >= 5 + QUICK.failures
    assert caplog.text.count("a record that nobody foresaw") == 1


def test_without_redis_nobody_is_deaf(free_port: int) -> None:
    assert worker_beats(f"redis://127.0.0.1:{free_port}/0", "n")(1) is None


def _noted(port: int, heard: list[bool | None]) -> Ask:
    """Asks a server and notes what was heard: a watch has patience until it has heard it once."""
    answers = server_answers(f"http://127.0.0.1:{port}/", QUICK)

    def ask(pid: int) -> bool | None:
        heard.append(answers(pid))
        return heard[-1]

    return ask


def _tend(service: Service, done: Callable[[list[str]], bool]) -> list[str]:
    """Tends until something is so; what was said."""
    said: list[str] = []
    deadline = time.monotonic() + 60
    while not done(said):
        if event := service.tend():
            said.append(event)
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return said
