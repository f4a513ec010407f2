"""The reaper: a plain loop that gives expired leases back, re-sends lost hints and advances sweeps.

Every worker and the API run one. It needs no leader: whatever it does is one idempotent step of the
ledger, so any number may run and any of them may die.
"""

import logging
import threading
from collections.abc import Callable

from loco.contracts.errors import RedisUnavailable
from loco.contracts.stages import Stage
from loco.ledger.ledger import Ledger
from loco.queue.sweeps import advance_all

logger = logging.getLogger(__name__)


class Reaper:
    """Reaps from a daemon thread until stopped.

    Args:
        ledger: what to reap.
        send_hint: tells a queue that there is work.
        publish: publishes what a committed task left, by task ID; None on a process that does not
            see the adapters folder.
        clear: clears the files of deleted jobs; None likewise.
        every: seconds between two looks.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        send_hint: Callable[[str, Stage], object],
        publish: Callable[[str], None] | None = None,
        clear: Callable[[], None] | None = None,
        every: float,
    ) -> None:
        self._ledger = ledger
        self._send_hint = send_hint
        self._publish = publish
        self._clear = clear
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Starts reaping."""
        self._thread.start()

    def stop(self) -> None:
        """Stops after the look in progress."""
        self._ended.set()
        self._thread.join()

    def reap(self) -> None:
        """Looks once.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        for hint in self._ledger.reap():
            logger.info("%s of job %s is ready: hint sent", hint.stage, hint.job_id)
            self._send_hint(hint.job_id, hint.stage)
        for hint in advance_all(self._ledger):
            logger.info("%s of job %s, a sweep's, is ready: hint sent", hint.stage, hint.job_id)
            self._send_hint(hint.job_id, hint.stage)
        if self._publish is not None:
            for task_id in self._ledger.unpublished():
                self._publish(task_id)
        if self._clear is not None:
            self._clear()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self.reap()
            except RedisUnavailable as error:
                logger.warning("reaper: Redis does not answer: %s", error)
            except Exception:  # the loop must outlive any single fault, and say so
                logger.exception("reaper")
