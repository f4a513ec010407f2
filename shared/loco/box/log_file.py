"""A service's log: bounded while it is written, and a line that comes a thousand times is counted.

The service writes into a pipe; one thread empties it, so that the service never waits for a slow
disk, and another one writes what came.
"""

import fcntl
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from loco.box.private import open_log, private_folder

#: A longer log is put aside as NAME.log.1, over the one before: at most twice as much lies there.
LONGEST_LOG_BYTES = 20_000_000
#: Lines that differ in their numbers only are one kind; of a kind so many are written in a window.
MOST_OF_A_KIND = 100
_WINDOW_SECONDS = 10.0
#: Kinds that are counted apart in a window; what comes after so many is one kind of its own.
_MOST_KINDS = 5000
_OTHERS = b"(other lines)"
#: A longer line is cut into several.
_LONGEST_LINE_BYTES = 16_384
_CHUNK_BYTES = 65_536
#: What waits for the disk; more is dropped and counted.
_MOST_WAITING_BYTES = 16_000_000
#: Room in the pipe: the service goes on for a while where this process is stopped (Ctrl-Z).
_PIPE_BYTES = 1 << 20
_SHOWN_BYTES = 200
_NUMBERS = re.compile(rb"[0-9]+")


class LogFile:
    """A file that takes what comes out of a pipe.

    Args:
        path: of the file; what it holds is kept. Its folder is made, this user's alone.
        longest: bytes from which it is put aside.
        window: seconds after which what was left out is counted.
    """

    def __init__(
        self, path: Path, *, longest: int = LONGEST_LOG_BYTES, window: float = _WINDOW_SECONDS
    ) -> None:
        private_folder(path.parent)
        self._path = path
        self._longest = longest
        self._window = window
        self._last = b""
        self._partial = b""
        self._kinds: dict[bytes, int] = {}
        self._left_out: dict[bytes, tuple[bytes, int]] = {}
        self._counted_at = time.monotonic()
        #: Bytes that found no room in `_waiting`, how many of those are told of, and those the disk refused.
        self._dropped = 0
        self._told = 0
        self._unwritten = 0
        self._waiting = bytearray()
        self._ended = False
        self._came = threading.Condition()
        self._source, self._sink = os.pipe()
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with suppress(OSError):  # this user has many pipes: the usual 64 kB do
                fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._reader = threading.Thread(target=self._read, name=f"{path.name} pipe", daemon=True)
        self._writer = threading.Thread(target=self._write, name=path.name, daemon=True)
        self._reader.start()
        self._writer.start()

    def fileno(self) -> int:
        """The pipe's end a process writes to."""
        return self._sink

    @property
    def last_line(self) -> str:
        """The last line that came, written or not; empty when none did."""
        return self._last.decode(errors="replace").strip()

    def release(self) -> None:
        """Closes our copy of the writing end: the log ends when those that write to it have ended."""
        os.close(self._sink)

    def wait(self, seconds: float) -> None:
        """Waits until all that came is written."""
        self._reader.join(seconds)
        self._writer.join(seconds)

    def _read(self) -> None:
        while chunk := os.read(self._source, _CHUNK_BYTES):
            with self._came:
                if len(self._waiting) > _MOST_WAITING_BYTES:
                    self._dropped += len(
                        self._waiting
                    )  # not the newest: they may be its last words
                    self._waiting.clear()
                self._waiting += chunk
                self._came.notify()
        os.close(self._source)
        with self._came:
            self._ended = True
            self._came.notify()

    def _write(self) -> None:
        while True:
            with self._came:
                self._came.wait_for(lambda: self._waiting or self._ended, self._window / 4)
                came, self._waiting = self._waiting, bytearray()
                ended = self._ended
            self._put(self._take(bytes(came)) + self._due())
            if ended:
                self._put((self._take(b"\n") if self._partial else b"") + self._counts())
                return

    def _take(self, chunk: bytes) -> bytes:
        """What is to be written of a chunk."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > _LONGEST_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        pieces = (
            line[start : start + _LONGEST_LINE_BYTES]
            for line in lines
            for start in range(0, max(1, len(line)), _LONGEST_LINE_BYTES)
        )
        return b"".join(piece + b"\n" for piece in pieces if self._wanted(piece))

    def _wanted(self, line: bytes) -> bool:
        if line.strip():
            self._last = line
        kind = _NUMBERS.sub(b"#", line)
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = _OTHERS
        self._kinds[kind] = seen = self._kinds.get(kind, 0) + 1
        if seen <= MOST_OF_A_KIND:
            return True
        self._left_out[kind] = (line, seen - MOST_OF_A_KIND)
        return False

    def _due(self) -> bytes:
        over = time.monotonic() - self._counted_at > self._window
        return self._counts() if over else b""

    def _counts(self) -> bytes:
        """What this window left out, in words; begins the next one."""
        seconds = time.monotonic() - self._counted_at
        words = [
            b"... %d more like this within %.0f s: %s\n" % (count, seconds, line[:_SHOWN_BYTES])
            for line, count in self._left_out.values()
        ]
        self._kinds.clear()
        self._left_out.clear()
        self._counted_at = time.monotonic()
        return b"".join(words)

    def _put(self, text: bytes) -> None:
        """Writes, where there is room: a log is never a reason to stop."""
        dropped = self._dropped  # the other thread goes on counting
        lost = dropped - self._told + self._unwritten
        if not text and not lost:
            return
        words = b"... %d bytes of this log are lost: the disk was full or slow\n" % lost
        try:
            if self._path.exists() and self._path.stat().st_size + len(text) > self._longest:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with open_log(self._path) as file:
                file.write((words if lost else b"") + text)
        except OSError:
            self._unwritten += len(text)  # said when there is room again
        else:
            self._told, self._unwritten = dropped, 0
