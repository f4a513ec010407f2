"""Whether a service that runs still does its work: asked now and then, by a thread of its own."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import httpx

from loco.contracts.errors import RedisUnavailable
from loco.ledger.ledger import Ledger

logger = logging.getLogger(__name__)

#: Asked with a service's process ID. True: it lives; False: no sign of it; None: nobody can tell now.
Ask = Callable[[int], bool | None]


class Patience(NamedTuple):
    """How a service is asked. Times in seconds."""

    #: Between two questions.
    every: float = 5
    #: An answer may take so long.
    answer: float = 5
    #: After so many questions in a row without an answer it is deaf.
    failures: int = 6
    #: One that has not answered yet since its start gets so long.
    start: float = 120


#: A server on a busy machine answers late, not never: it is deaf after 30 to 60 seconds.
SERVER = Patience()
#: Workers give a sign every 5 seconds, and none while they publish a stage and tell Ollama of it.
WORKER = Patience(every=10, failures=30, start=300)


class Watch:
    """Asks one process whether it lives, until `stop`.

    Args:
        ask: see `Ask`.
        pid: the process.
        patience: see there.
    """

    def __init__(self, ask: Ask, pid: int, patience: Patience) -> None:
        self._ask = ask
        self._pid = pid
        self._patience = patience
        self._failures = 0
        self._answered = False
        self._started_at = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @property
    def deaf(self) -> bool:
        """Whether it has given no sign for too long."""
        starting = time.monotonic() - self._started_at < self._patience.start
        return self._failures >= self._patience.failures and (self._answered or not starting)

    def stop(self) -> None:
        """Asks no more; does not wait for a question under way."""
        self._over.set()

    def _run(self) -> None:
        said = ""
        while not self._over.wait(self._patience.every):
            try:
                answer = self._ask(self._pid)
            except Exception as error:  # noqa: BLE001 (whatever it is, nobody can tell now: asked again)
                if (text := f"{type(error).__name__}: {error}") != said:
                    logger.warning("process %d could not be checked: %s", self._pid, text)
                said, answer = text, None
            if answer is not None:
                self._failures = 0 if answer else self._failures + 1
                self._answered = self._answered or answer


def server_answers(url: str, patience: Patience = SERVER) -> Ask:
    """Asks an HTTP server; whatever it answers, it lives."""

    def ask(_pid: int) -> bool:
        try:
            with httpx.Client(trust_env=False, timeout=patience.answer) as http:
                http.get(url)
        except httpx.HTTPError:
            return False
        return True

    return ask


def worker_beats(redis_url: str, namespace: str) -> Ask:
    """Looks for a worker's heartbeat in the ledger; while Redis is down nobody can tell."""

    def ask(pid: int) -> bool | None:
        here = socket.gethostname()  # as it is now, and as the workers say: a laptop's changes
        with closing(Ledger.connect(redis_url, namespace=namespace)) as ledger:
            try:
                return (here, pid) in {(w.host, w.pid) for w in ledger.workers()}
            except RedisUnavailable:
                return None

    return ask
