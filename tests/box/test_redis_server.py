"""Our own server, and what its failures look like to the ledger."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import redis
from celery import Celery

from loco.box import redis_server
from loco.box.redis_server import RedisServer
from loco.contracts.errors import Conflict, InvalidRequest, RedisUnavailable
from loco.contracts.jobs import JobStatus
from loco.contracts.specs import JobSpec
from loco.contracts.stages import Queue, Stage
from loco.ledger.connection import masked, unguarded
from loco.ledger.ledger import CommitAnswer, Hint, Ledger
from loco.queue.celery_app import celery_app, close_queue, send_hint
from loco.settings import Settings

pytestmark = pytest.mark.redis

Specs = Callable[..., JobSpec]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = redis_server.start(tmp_path / "redis")
    yield server
    if server.is_running:
        server.process.send_signal(signal.SIGCONT)
        server.stop()


@pytest.fixture
def own(server: RedisServer) -> Iterator[Ledger]:
    """A ledger on a server of the test's own."""
    ledger = Ledger.connect(server.url)
    yield ledger
    ledger.close()


class TestServer:
    def test_jobs_outlive_a_kill(
        self, server: RedisServer, own: Ledger, spec: Specs, tmp_path: Path
    ) -> None:
        ids = [own.submit(spec())[0].id for _ in range(5)]
        server.process.kill()
        server.process.wait()
        again = redis_server.start(tmp_path / "redis")
        try:
            assert [job.id for job in own.jobs()[0]] == ids[::-1]
            claim = own.claim(Queue.CPU, worker_id="w", nonce="n")
            assert claim is not None
            assert claim.job_id == ids[0]
        finally:
            again.stop()

    def test_runs_with_the_flags_that_keep_data(self, server: RedisServer) -> None:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        for name, value in {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "port": "0",
        }.items():
            assert client.config_get(name)[name] == value
        client.close()

    def test_stops_cleanly(self, server: RedisServer) -> None:
        server.stop()
        assert server.process.returncode == 0
        server.stop()

    def test_ctrl_c_of_the_terminal_does_not_reach_it(self, server: RedisServer) -> None:
        assert os.getpgid(server.process.pid) != os.getpgid(0)

    def test_dies_with_its_parent(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom loco.box import redis_server\n"
            "s = redis_server.start(Path(sys.argv[1]))\n"
            "print(s.process.pid, flush=True)\ntime.sleep(60)"
        )
        parent = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "r")],
            stdout=subprocess.PIPE,
        )
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 10
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def test_a_folder_takes_one_server(self, server: RedisServer, tmp_path: Path) -> None:
        with pytest.raises(RedisUnavailable, match="Another Redis server already uses"):
            redis_server.start(tmp_path / "redis")

    def test_a_folder_too_deep_for_a_socket_has_it_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = Path(tempfile.mkdtemp())  # pytest's own folders may be too deep
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
        server = redis_server.start(tmp_path / ("deep" * 30) / "redis")
        try:
            socket_file = socket_of(server.url)
            assert socket_file.parent == runtime / f"locollm-{os.getuid()}"
            assert stat.S_IMODE(socket_file.parent.stat().st_mode) == 0o700
            with redis.Redis.from_url(server.url) as client:
                assert client.ping()
        finally:
            server.stop()
            shutil.rmtree(runtime)

    def test_what_is_no_folder_of_this_user_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "redis").symlink_to(tmp_path / "gone")
        with pytest.raises(
            InvalidRequest, match="a link to nothing, not a folder that belongs to this user"
        ):
            redis_server.start(tmp_path / "redis")


class TestFindServer:
    def test_path_goes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "redis-server"
        program.write_text("#!/bin/sh\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert redis_server.find_server() == program

    def test_then_the_bundled_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert redis_server.find_server().name == "valkey-server"

    def test_none_says_how_to_get_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(RedisUnavailable) as caught:
            redis_server.find_server()
        assert "LOCO_REDIS_URL" in str(caught.value.hint)


class TestFailures:
    def test_absent_server_is_named_without_its_password(self, free_port: int) -> None:
        ledger = Ledger.connect(f"redis://user:secret@127.0.0.1:{free_port}/0")
        for ask in (ledger.ping, ledger.jobs, ledger.reap, ledger.workers):
            with pytest.raises(RedisUnavailable) as caught:
                ask()
            assert "secret" not in caught.value.message
            assert str(free_port) in caught.value.message

    def test_comes_back_by_itself(
        self, server: RedisServer, own: Ledger, spec: Specs, tmp_path: Path
    ) -> None:
        own.submit(spec())
        server.stop()
        with pytest.raises(RedisUnavailable):
            own.jobs()
        again = redis_server.start(tmp_path / "redis")
        try:
            assert len(own.jobs()[0]) == 1
        finally:
            again.stop()

    def test_cut_connections_are_not_noticed(
        self, server: RedisServer, own: Ledger, spec: Specs
    ) -> None:
        killer = redis.Redis.from_url(server.url)
        for _ in range(10):
            killer.client_kill_filter(_type="normal", skipme=True)
            own.submit(spec())
        killer.close()
        assert len(own.jobs()[0]) == 10

    def test_a_full_server_is_said_and_changes_nothing(
        self, server: RedisServer, own: Ledger, spec: Specs
    ) -> None:
        job, _ = own.submit(spec())
        claim = own.claim(Queue.CPU, worker_id="w", nonce="n")
        assert claim is not None
        admin = redis.Redis.from_url(server.url)
        admin.config_set("maxmemory", "1")
        commit = {"result": {}, "artifacts": (), "fingerprint": "f"}
        for ask in (
            lambda: own.submit(spec()),
            lambda: own.renew(claim.task_id, claim.token),
            lambda: own.commit(claim.task_id, claim.token, **commit),
            lambda: own.cancel(job.id),
        ):
            with pytest.raises(RedisUnavailable, match="is full"):
                ask()
        assert own.job(job.id) == claim.job
        admin.config_set("maxmemory", "0")
        admin.close()
        assert own.commit(claim.task_id, claim.token, **commit) is CommitAnswer.NEXT
        assert [j.id for j in own.jobs()[0]] == [job.id]

    def test_a_refused_password_is_said(self, server: RedisServer) -> None:
        admin = redis.Redis.from_url(server.url)
        admin.config_set("requirepass", "right")
        admin.close()
        wrong = Ledger.connect(server.url.replace("//", "//:wrong@"))
        missing = Ledger.connect(server.url)
        for ledger in (wrong, missing):
            with pytest.raises(RedisUnavailable, match="password"):
                ledger.ping()
        right = Ledger.connect(server.url.replace("//", "//:right@"))
        right.ping()
        right.close()

    def test_not_a_redis_url(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            Ledger.connect("http://127.0.0.1:1")
        assert caught.value.param == "LOCO_REDIS_URL"

    def test_masked(self) -> None:
        assert masked("redis://u:p@h:1/0") == "redis://u:***@h:1/0"
        assert masked("rediss://:p%40x@h/0") == "rediss://:***@h/0"
        assert masked("redis://h:1") == "redis://h:1"

    @pytest.mark.parametrize("url", ["redis://h:1/0", "redis://user@h/0", "rediss://127.0.0.1:1/0"])
    def test_no_password_is_said(self, url: str) -> None:
        words = unguarded(url)
        assert words is not None
        assert url in words[0]
        assert "requirepass" in words[1]

    @pytest.mark.parametrize(
        "url", ["redis://:p@h:1/0", "redis://h:1/0?password=p", "unix:///s.sock?db=0"]
    )
    def test_a_password_or_a_socket_is_enough(self, url: str) -> None:
        assert unguarded(url) is None


class TestHints:
    def test_arrive_as_messages_of_the_one_task(
        self, ledger: Ledger, app: Celery, namespace: str
    ) -> None:
        assert send_hint(app, Hint(job_id="j", stage=Stage.TRAIN))
        with app.connection_for_read() as connection, connection.SimpleQueue("gpu") as queue:
            message = queue.get(timeout=5)
            message.ack()
        assert message.headers["task"] == "loco.stage"
        assert message.payload[1] == {"job_id": "j", "stage": "train"}

    def test_a_broker_that_is_down_does_not_hold_anything_up(
        self, server: RedisServer, settings: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = celery_app(settings.model_copy(update={"redis_url": server.url}))
        hint = Hint(job_id="j", stage=Stage.TRAIN)
        assert send_hint(app, hint)
        server.stop()
        for _ in range(2):  # with an open connection that broke, and without one
            began = time.monotonic()
            assert not send_hint(app, hint)
            assert time.monotonic() - began < 5
        assert "will be sent again" in caplog.text
        close_queue(app)

    def test_a_closed_queue_leaves_no_connection_and_another_may_follow(
        self, server: RedisServer, settings: Settings
    ) -> None:
        for _ in range(2):
            app = celery_app(settings.model_copy(update={"redis_url": server.url}))
            assert send_hint(app, Hint(job_id="j", stage=Stage.TRAIN))
            close_queue(app)
        with redis.Redis.from_url(server.url) as client:
            deadline = time.monotonic() + 30
            while len(client.client_list()) > 1:  # the one that asks
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def test_no_redis_configured(self) -> None:
        with pytest.raises(RedisUnavailable) as caught:
            celery_app(Settings())
        assert "loco up" in str(caught.value.hint)


class LosesReplies:
    """A relay to the server that passes a script's call on and cuts the line before the reply."""

    def __init__(self, server: Path) -> None:
        self._server = str(server)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.armed = 0
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            far.connect(self._server)
            threading.Thread(target=self._reply, args=(near, far), daemon=True).start()
            while request := receive(near):
                self._cut = bool(self.armed) and b"EVALSHA" in request
                far.sendall(request)

    def _reply(self, near: socket.socket, far: socket.socket) -> None:
        while reply := receive(far):
            if self._cut:
                self.armed -= 1
                self._cut = False
                near.shutdown(socket.SHUT_RDWR)
                return
            near.sendall(reply)


def receive(line: socket.socket) -> bytes:
    """What came, or nothing when the line is cut."""
    try:
        return line.recv(1 << 20)
    except OSError:
        return b""


class TestLostReplies:
    """The client repeats a command whose reply got lost; the ledger must count it once."""

    @pytest.fixture
    def relay(self, server: RedisServer) -> Iterator[LosesReplies]:
        relay = LosesReplies(socket_of(server.url))
        yield relay
        relay.close()

    def test_each_call_counts_once(self, relay: LosesReplies, own: Ledger, spec: Specs) -> None:
        warm, _ = own.submit(spec())  # the scripts are known to the server from here on
        own.claim(Queue.CPU, worker_id="w", nonce="warm")
        own.cancel(warm.id)
        with pytest.raises(Conflict):
            own.retry(warm.id)
        ledger = Ledger.connect(relay.url)
        relay.armed = 1
        job, created = ledger.submit(spec())
        assert relay.armed == 0
        assert created, "the caller sends the hint, though the first reply was lost"
        assert [j.id for j in own.jobs(status=JobStatus.QUEUED)[0]] == [job.id]

        relay.armed = 1
        claim = ledger.claim(Queue.CPU, worker_id="w", nonce="n")
        assert claim is not None
        assert (claim.job_id, claim.attempt) == (job.id, 1)
        assert own.claim(Queue.CPU, worker_id="w", nonce="m") is None

        ledger.cancel(job.id)
        ledger.cancelled(claim.task_id, claim.token)
        own.retry(job.id)
        own.cancel(job.id)
        relay.armed = 1
        assert ledger.retry(job.id).status is JobStatus.QUEUED
        assert relay.armed == 0
        ledger.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def socket_of(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))
