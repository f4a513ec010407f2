"""Relays a program's events to the ledger: progress coalesced, logs and checkpoints in order."""

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from loco.contracts.errors import RedisUnavailable
from loco.contracts.jobs import Checkpoint
from loco.contracts.program_events import (
    CheckpointEvent,
    ErrorEvent,
    LogEvent,
    Progress,
    ProgressEvent,
    StageEvent,
)
from loco.ledger.ledger import Claim, Ledger
from loco.stage.program import PROGRESS_PER_SECOND

logger = logging.getLogger(__name__)

#: Log lines kept while Redis does not answer; older ones are in the attempt's log only.
_WAITING_LINES = 1000
_REDIS_PAUSE_SECONDS = 1.0

_ItemT = TypeVar("_ItemT")


class Relay:
    """Events of one attempt on their way to the ledger.

    Nothing here waits: while Redis is away, log lines and checkpoints queue up and only the newest
    progress is kept.
    """

    def __init__(self, ledger: Ledger, claim: Claim, adapters_dir: Path) -> None:
        #: The error the program reported, if any.
        self.error: ErrorEvent | None = None
        self._ledger = ledger
        self._claim = claim
        self._adapters_dir = adapters_dir.resolve()
        self._progress: Progress | None = None
        self._lines: deque[str] = deque(maxlen=_WAITING_LINES)
        self._checkpoints: deque[Checkpoint] = deque()
        self._not_before = 0.0

    def take(self, event: StageEvent) -> None:
        """Takes an event from the program."""
        match event:
            case ProgressEvent():
                self._progress = event.progress
            case LogEvent():
                self._lines.append(event.message)
            case CheckpointEvent():
                self._take_checkpoint(event)
            case ErrorEvent():
                self.error = event

    def flush(self) -> None:
        """Sends what is due; keeps it when Redis does not answer."""
        now = time.monotonic()
        if now < self._not_before:
            return
        try:
            self.finish()
            self._not_before = now + 1 / PROGRESS_PER_SECOND
        except RedisUnavailable as error:
            logger.warning("%s: events wait for Redis: %s", self._claim.task_id, error)
            self._not_before = now + _REDIS_PAUSE_SECONDS

    def finish(self) -> None:
        """Sends everything.

        Raises:
            RedisUnavailable: what was not sent is kept.
        """
        task_id, token = self._claim.task_id, self._claim.token
        _drain(self._checkpoints, lambda c: self._ledger.checkpoint(task_id, token, c))
        _drain(self._lines, lambda line: self._ledger.log(task_id, token, line))
        if self._progress is not None:
            self._ledger.progress(task_id, token, self._progress)
            self._progress = None

    def _take_checkpoint(self, event: CheckpointEvent) -> None:
        path = Path(event.path).resolve()
        if not path.is_relative_to(self._adapters_dir):
            logger.warning("%s: checkpoint outside the adapters folder: %s", self._claim, path)
            return
        relative = path.relative_to(self._adapters_dir).as_posix()
        self._checkpoints.append(Checkpoint(path=relative, step=event.step))
        self._not_before = 0.0


def _drain(waiting: deque[_ItemT], send: Callable[[_ItemT], object]) -> None:
    while waiting:
        send(waiting[0])
        waiting.popleft()
