"""A stage program as a child process: its events, its ticks, its end.

The child leads a process group of its own, so that it and whatever it starts end together. Start it
from a thread that lives as long as the attempt: the kernel ties "die with your parent" to the
thread that forked.
"""

import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from loco.contracts.program_events import LogEvent, StageEvent, parse_event

_LONGEST_EVENT_BYTES = 1 << 20
_WAITING_EVENTS = 10_000
_READER_PATIENCE_SECONDS = 5.0
#: A log that is longer loses its second half, and goes on: its start and its latest lines stay.
_LONGEST_LOG_BYTES = 20_000_000
_TAIL_BYTES = 4000
_TAIL_LINES = 12


class Child:
    """A running stage program."""

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._log = log.open("ab", buffering=0)
        # bounded: a program that floods its output waits instead of filling our memory
        self._events: queue.Queue[StageEvent] = queue.Queue(_WAITING_EVENTS)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="child-reader", daemon=True
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process ID of the program and of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self._process.poll() is None

    def event(self, timeout: float) -> StageEvent | None:
        """The next event, or None when none comes within `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout) if timeout else self._events.get_nowait()
        except queue.Empty:
            return None

    def bound_log(self, longest: int = _LONGEST_LOG_BYTES) -> None:
        """Cuts a log that has grown beyond `longest` bytes to half of that; asked often, as it grows meanwhile.

        The program writes to the file by itself, always at its end.
        """
        size = os.fstat(self._log.fileno()).st_size
        if size <= longest:
            return
        os.ftruncate(self._log.fileno(), longest // 2)
        with suppress(OSError):  # a full disk: the line is no reason to stop
            self._log.write(b"\n... %d bytes of this log are left out\n" % (size - longest // 2))

    def tick(self) -> None:
        """Tells the program that its lease holds."""
        self._say(b"tick\n")

    def request_stop(self) -> None:
        """Asks the program to leave a checkpoint and exit with 75."""
        self._say(b"stop\n")

    def kill(self) -> None:
        """Kills the program and everything it started that stayed in its group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # all of them have ended

    def finish(self) -> int:
        """Waits for the end, sweeps the group and returns the exit code (negative: a signal)."""
        code = self._process.wait()
        self.kill()
        self._reader.join(_READER_PATIENCE_SECONDS)
        for pipe in (self._stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # an unsent tick, of no use to anybody now
        self._log.close()
        return code

    def _say(self, line: bytes) -> None:
        try:
            self._stdin.write(line)
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended; its exit code says the rest

    def _read(self, stdout: IO[bytes]) -> None:
        while line := stdout.readline(_LONGEST_EVENT_BYTES):
            event = _parsed(line)
            if isinstance(event, LogEvent):
                with suppress(
                    OSError
                ):  # a full disk: the ledger has the line, and events must go on
                    self._log.write(f"{event.message}\n".encode())
            self._events.put(event)


def log_tail(path: Path) -> str:
    """The last lines of an attempt's log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _parsed(line: bytes) -> StageEvent:
    try:
        return parse_event.validate_json(line)
    except ValidationError:
        return LogEvent(message=line.decode(errors="replace").rstrip()[:2000])
