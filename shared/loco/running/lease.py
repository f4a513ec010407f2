"""Keeps one attempt's lease: renews it from a thread and remembers what the ledger answered."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from loco.contracts.errors import RedisUnavailable
from loco.ledger.ledger import Claim, Ledger, Renewal

logger = logging.getLogger(__name__)


class Lease:
    """The lease of a claimed stage, renewed while the `with` block lasts.

    Renewing has a thread of its own because the attempt's thread hashes gigabytes and waits for
    Redis; a lease must not run out meanwhile.
    """

    def __init__(self, ledger: Ledger, claim: Claim, *, every: float) -> None:
        """Takes over a fresh claim.

        Args:
            ledger: where to renew.
            claim: what was claimed just now.
            every: seconds between two renewals.
        """
        self._ledger = ledger
        self._claim = claim
        self._every = every
        self._answer = Renewal.OK
        self._renewed_at = time.monotonic()
        self._on_renewal: Callable[[], None] = _nothing
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    @property
    def answer(self) -> Renewal:
        """What the ledger last said."""
        return self._answer

    @property
    def age(self) -> float:
        """Seconds since the last renewal that was answered."""
        return time.monotonic() - self._renewed_at

    def on_renewal(self, call: Callable[[], None]) -> None:
        """Has `call` called after every renewal from now on (from the lease's thread)."""
        self._on_renewal = call

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            asked_at = time.monotonic()
            try:
                self._answer = self._ledger.renew(self._claim.task_id, self._claim.token)
            except RedisUnavailable as error:
                logger.warning("%s: not renewed: %s", self._claim.task_id, error)
                continue
            except Exception:  # age grows, the attempt stops; a thread must not die unseen
                logger.exception("%s: not renewed", self._claim.task_id)
                continue
            if self._answer is Renewal.LOST:
                return
            self._renewed_at = asked_at
            self._on_renewal()


def _nothing() -> None:
    """Called after a renewal until there is a child to tick."""
