"""The Redis of `loco up`: started, started again when it ends, stopped."""

import threading
import time
from pathlib import Path

from loco.box import redis_server
from loco.box.redis_server import RedisServer
from loco.contracts.errors import RedisUnavailable

_TRIES = 6
_PAUSE_SECONDS = 1.0


class OwnRedis:
    """A server of a data folder that should always run.

    Raises:
        RedisUnavailable: it does not start.

    Args:
        folder: its data.
        stopping: cuts the first start short.
    """

    def __init__(self, folder: Path, stopping: threading.Event) -> None:
        self._folder = folder
        self._server = self._first(stopping)
        self._again_at = 0.0
        self._said = ""

    @property
    def url(self) -> str:
        """Where it answers, also after it was started again."""
        return self._server.url

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        return self._server.process.pid

    def stop(self) -> None:
        """Lets it write and end."""
        self._server.stop()

    def tend(self, *, room: bool) -> tuple[str | None, bool]:
        """Starts it again when it has ended; while there is no room for its data it waits.

        Args:
            room: whether there is.

        Returns:
            What happened, for people, and whether the server is another process now.
        """
        if self._server.is_running or time.monotonic() < self._again_at:
            return None, False
        self._again_at = time.monotonic() + _PAUSE_SECONDS
        ended = f"ended ({self._server.process.returncode}); "
        if not room:
            return self._once(ended + "it starts again when the disk has free space"), False
        try:
            self._server = redis_server.start(self._folder)
        except RedisUnavailable as error:
            return self._once(f"{error.message} {error.hint or ''}"), False
        self._said = ""
        return f"{ended}started again on its data (process {self.pid})", True

    def _once(self, text: str) -> str | None:
        """A text that is tried again every second is said when it is new."""
        known, self._said = self._said, text
        return None if text == known else text

    def _first(self, stopping: threading.Event) -> RedisServer:
        for _ in range(_TRIES - 1):
            try:
                return redis_server.start(self._folder)
            except RedisUnavailable:
                # perhaps the server of a killed `loco up` is still closing its files
                if stopping.wait(_PAUSE_SECONDS):
                    raise
        return redis_server.start(self._folder)
