"""Everything locollm needs on one machine, as child processes of this one.

Redis, the model host where no Ollama answers, the API and both workers; used by `loco up`, by
`loco demo` and by the acceptance tests:

    with Stack(settings, say=print) as stack:
        stack.wait_ready()
        ...                     # stack.server is the API's address
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from loco.box.announced import announce, announce_to_user
from loco.box.listening import checked_port, reachable
from loco.box.liveness import SERVER, WORKER, Ask, Patience, server_answers, worker_beats
from loco.box.own_redis import OwnRedis
from loco.box.private import take_from_others
from loco.box.room import Room
from loco.box.service import Service
from loco.client.running import UP_FILE, Up, born
from loco.contracts.disk import is_disk_full
from loco.contracts.errors import Conflict, InvalidRequest, LocoError, RedisUnavailable
from loco.contracts.files import try_lock
from loco.ledger.connection import unguarded
from loco.ledger.ledger import Ledger
from loco.settings import DEFAULT_OLLAMA, Settings, homes
from loco.stage.environment import child_environment, service_environment

LOCK = "up.lock"

#: What a data folder holds of ours.
_OURS = ("redis", "logs", "locks", "answers", "models", "modelhost", UP_FILE, LOCK)
_TEND_SECONDS = 0.2
_PROBE_SECONDS = 2.0
#: A child that ends with this code before it was ready has a wrong setting: no use to try again.
_EXIT_SETTINGS = 2
#: Answers the model host generates at once: on a CPU several one-thread answers beat one on many.
_MOST_PARALLEL = 4
_CHILDREN = {"PYTHONUNBUFFERED": "1"}
_LOOPBACK = "127.0.0.1"

Say = Callable[[str, str], None]


class Stack:
    """The processes of one data folder.

    One thread starts, tends and stops all of them, because a child dies with the thread that
    forked it.

    Attributes:
        server: address of the API.
        redis_url: the ledger's Redis.
        ollama_host: where register and eval go.
    """

    def __init__(self, settings: Settings, *, say: Say | None = None) -> None:
        """Takes the settings; `say(name, text)` hears every event."""
        self._given = settings
        self._say = say or (lambda _name, _text: None)
        self._services: list[Service] = []
        self._room = Room(settings.data_dir, settings.adapters_dir)
        self._redis: OwnRedis | None = None
        self._up_file_due = False
        self._noted: Path | None = None
        self._lock: int | None = None
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._started = threading.Event()
        self._ready = threading.Event()
        self._error: LocoError | None = None
        self._thread = threading.Thread(target=self._run, name="stack")
        self.server = ""
        self.redis_url = ""
        self.ollama_host = settings.ollama_host

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether anything may still run."""
        return self._thread.is_alive()

    @property
    def error(self) -> LocoError | None:
        """What ended the stack, if it was not `stop`."""
        return self._error

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Starts everything; returns once all processes are there (they may not answer yet).

        Raises:
            LocoError: something is missing or in the way; nothing is left running.
        """
        self._thread.start()
        while self._thread.is_alive() and not self._started.wait(0.05):
            pass
        if not self._started.is_set():
            self._thread.join()
            raise self._error or LocoError("`loco up` was stopped while it started.")

    def wait_ready(self, seconds: float = 120) -> bool:
        """Waits until /readyz says that every part answers.

        Returns:
            False when that took longer than `seconds` or the stack ended.
        """
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if self._ready.wait(0.05):
                return True
        return False

    def request_stop(self, *, now: bool = False) -> None:
        """Has everything stopped: drained first, or killed right away with `now`."""
        self._stopping.set()
        if now:
            self._hurry.set()

    def stop(self) -> None:
        """Stops everything and waits for it."""
        self.request_stop()
        if self._thread.ident is not None:
            self._thread.join()

    # The stack's thread

    def _run(self) -> None:
        try:
            self._start()
            self._started.set()
            while not self._stopping.wait(_TEND_SECONDS):
                try:
                    self._tend()
                except OSError as error:
                    if not is_disk_full(error):  # that `_room` says; all is tended again
                        raise
        except LocoError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 (kept for the caller, who raises it)
            self._error = LocoError(f"{type(error).__name__}: {error}")
            self._error.__cause__ = error
        finally:
            self._stop()

    def _start(self) -> None:
        given = self._given
        if not given.train_python.is_file():
            raise InvalidRequest(
                f"No training environment: {given.train_python} is missing.",
                param="LOCO_TRAIN_PYTHON",
                hint="Run `make setup` in the checkout (looked for .venv-train in "
                f"{', '.join(map(str, homes()))}), or set LOCO_TRAIN_PYTHON to its Python.",
            )
        self._say("up", f"recipes in {given.adapters_dir}, data in {given.data_dir}")
        mended = take_from_others(given.data_dir, _OURS)
        if mended:
            self._say("data", f"removed other users' access to {len(mended)} files and folders")
        self._lock = _take_lock(given.data_dir)
        port = checked_port(given.host, given.port)
        self.server = f"http://{reachable(given.host)}:{port}"
        self._await_room()
        self._start_redis()
        ollama = self._ollama()
        settings = given.model_copy(
            update={"port": port, "redis_url": self.redis_url, "ollama_host": self.ollama_host}
        )
        environment = {
            **service_environment(passed=given.pass_env),
            **settings.environment(),
            **_CHILDREN,
        }
        drain = settings.timings.renew + settings.timings.stop_grace + 15
        python, train = Path(sys.executable), settings.train_python
        answers = server_answers(f"{self.server}/healthz"), SERVER
        beats = worker_beats(self.redis_url, settings.namespace), WORKER
        self._services = [
            *ollama,
            self._service("api", [python, "-m", "loco_api"], environment, 15, answers),
            self._service("worker", [python, "-m", "loco_worker"], environment, drain, beats),
            self._service("trainer", [train, "-m", "loco_trainer"], environment, drain, beats),
        ]
        for service in self._services:
            service.start()
            self._say(service.name, f"started (process {service.pid}, log {service.log})")
        self._write_up_file()
        self._tell_user()

    def _service(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: dict[str, str],
        stop_seconds: float,
        liveness: tuple[Ask, Patience],
    ) -> Service:
        python, *arguments = map(str, command)
        ask, patience = liveness
        return Service(
            name,
            [python, "-P", *arguments],
            environment=environment,
            log=self._given.data_dir / "logs" / f"{name}.log",
            stop_seconds=stop_seconds,
            ask=ask,
            patience=patience,
        )

    def _await_room(self) -> None:
        while (event := self._room.event()) or self._room.lacking:
            if event:
                self._say("disk", event)
            if self._stopping.wait(_TEND_SECONDS):
                raise LocoError("`loco up` was stopped while it waited for free disk space.")

    def _start_redis(self) -> None:
        if self._given.redis_url:
            self.redis_url = self._given.redis_url
            ledger = Ledger.connect(self.redis_url, namespace=self._given.namespace)
            try:
                ledger.ping()
            except RedisUnavailable as error:
                raise RedisUnavailable(
                    error.message,
                    hint="LOCO_REDIS_URL points to it. Start it, or unset LOCO_REDIS_URL: then "
                    "`loco up` starts its own server.",
                ) from error
            finally:
                ledger.close()
            self._say("redis", "answers at LOCO_REDIS_URL")
            if words := unguarded(self.redis_url):
                self._say("redis", " ".join(words))
            return
        folder = self._given.data_dir / "redis"
        self._redis = OwnRedis(folder, self._stopping)
        self.redis_url = self._redis.url
        self._say("redis", f"{self.redis_url} (process {self._redis.pid}, data {folder})")

    def _ollama(self) -> list[Service]:
        """The stand-in for Ollama, if one is needed."""
        host = self._given.ollama_host
        if ollama_answers(host):
            self._say("ollama", f"answers at {host}")
            return []
        given = host != DEFAULT_OLLAMA
        address = urlsplit(host)
        loopback = address.hostname in (_LOOPBACK, "localhost", "::1")
        if given and not loopback:
            self._say("ollama", f"no answer at {host}; register and eval will wait for it")
            return []
        port = address.port if given and address.port else checked_port(_LOOPBACK, 0)
        self.ollama_host = f"http://{_LOOPBACK}:{port}"
        self._say(
            "ollama",
            f"no answer at {host}; locollm's own model host replaces it at {self.ollama_host}",
        )
        command: list[str | Path] = [
            self._given.train_python,
            "-m",
            "loco_modelhost",
            "--host",
            _LOOPBACK,
        ]
        command += ["--port", str(port), "--data-dir", self._given.data_dir / "modelhost"]
        command += ["--parallel", str(min(_MOST_PARALLEL, os.cpu_count() or 1))]
        environment = {**child_environment(passed=self._given.pass_env), **_CHILDREN}
        answers = server_answers(f"{self.ollama_host}/"), SERVER
        return [self._service("modelhost", command, environment, 10, answers)]

    def _tend(self) -> None:
        if event := self._room.event():
            self._say("disk", event)
        changed = self._tend_redis()
        for service in self._services:
            if not self._ready.is_set() and service.exit_code == _EXIT_SETTINGS:
                raise LocoError(
                    f"{service.name}: {service.last_words()}", hint=f"See {service.log}"
                )
            event = service.tend()
            if event:
                changed = True
                self._say(service.name, event)
        if changed or self._up_file_due:
            self._write_up_file()
        if not self._ready.is_set():
            self._probe()

    def _tend_redis(self) -> bool:
        if self._redis is None:
            return False
        event, changed = self._redis.tend(room=not self._room.lacking)
        if event:
            self._say("redis", event)
        return changed

    def _probe(self) -> None:
        readiness = _readiness(self.server)
        if readiness is None:
            return
        down = {name for name, check in readiness["checks"].items() if check["status"] != "ok"}
        elsewhere = {"ollama"} if all(s.name != "modelhost" for s in self._services) else set()
        if not down - elsewhere:
            self._ready.set()
            self._say("ready", self.server)

    def _stop(self) -> None:
        order = [["trainer", "worker"], ["api"], ["modelhost"]]
        for names in order:
            group = [s for s in self._services if s.name in names]
            for service in group:
                service.terminate()
            for service in group:
                by_itself = service.wait(cut_short=self._hurry.is_set)
                self._say(service.name, "stopped" if by_itself else "did not stop in time, killed")
        if self._redis is not None:
            self._redis.stop()
            self._say("redis", "stopped")
        if self._lock is not None:
            (self._given.data_dir / UP_FILE).unlink(missing_ok=True)
            if self._noted is not None:
                self._noted.unlink(missing_ok=True)
            os.close(self._lock)

    def _write_up_file(self) -> None:
        """Tells the `loco` commands of this machine where everything is."""
        pids = {s.name: s.pid for s in self._services if s.pid is not None}
        if self._redis is not None:
            pids["redis"] = self._redis.pid
        document = Up(
            server=self.server,
            redis_url=self.redis_url,
            ollama_host=self.ollama_host,
            data_dir=self._given.data_dir,
            adapters_dir=self._given.adapters_dir,
            pid=os.getpid(),
            born=born(os.getpid()),
            pids=pids,
        )
        self._up_file_due = True
        announce(document, self._given.data_dir)
        self._up_file_due = False

    def _tell_user(self) -> None:
        """Has this user's commands in other folders find it; without a home they have to be told by hand."""
        try:
            self._noted = announce_to_user(self._given.data_dir)
        except (OSError, InvalidRequest) as error:
            why = getattr(error, "strerror", None) or str(error)
            self._say("up", f"in other folders, export LOCO_SERVER={self.server} ({why})")


def ollama_answers(host: str) -> bool:
    """Whether something like Ollama answers at a base URL."""
    try:
        with httpx.Client(trust_env=False, timeout=_PROBE_SECONDS) as http:
            return http.get(f"{host}/").is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _readiness(server: str) -> dict[str, Any] | None:
    try:
        with httpx.Client(trust_env=False, timeout=2 * _PROBE_SECONDS) as http:
            answer = http.get(f"{server}/readyz")
            document = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _take_lock(data_dir: Path) -> int:
    descriptor = try_lock(data_dir / LOCK)
    if descriptor is None:
        raise Conflict(
            f"Another `loco up` already uses {data_dir}.",
            hint="Use it (`loco jobs`), stop it, or give this one its own --data-dir and --port.",
        )
    return descriptor
