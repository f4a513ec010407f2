"""One long-running child of `loco up`: started, restarted with backoff, logged, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loco.box.private import PRIVATE_UMASK, open_log, private_folder
from loco.stage.deathsig import dying_with_us

_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 30.0
#: A child that lived so long starts again at the first backoff.
_HEALTHY_SECONDS = 60.0
_TAIL_BYTES = 2000
#: A longer log is put aside as NAME.log.1 at the next start.
_LONGEST_LOG_BYTES = 20_000_000


class Service:
    """A child process that should always run.

    Start it from a thread that lives as long as the child should: the kernel kills the child when
    that thread ends.

    Args:
        name: word before its lines on the terminal, and of its log file.
        command: program and arguments.
        environment: its whole environment.
        log: file its output is appended to.
        stop_seconds: it gets so long after SIGTERM, then it is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self.log = log
        self.stop_seconds = stop_seconds
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._start_at: float | None = None

    @property
    def pid(self) -> int | None:
        """Process ID while it runs."""
        return self._process.pid if self._process and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the process."""
        private_folder(self.log.parent)
        if self.log.exists() and self.log.stat().st_size > _LONGEST_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with open_log(self.log) as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                umask=PRIVATE_UMASK,
                preexec_fn=dying_with_us(),  # noqa: PLW1509 (two system calls, nothing loaded)
            )
        self._started_at = time.monotonic()
        self._start_at = None

    def tend(self) -> str | None:
        """Notices the end of the process and starts it again when its pause is over.

        Returns:
            What happened, for people; None when nothing did.
        """
        if self.running:
            return None
        assert self._process is not None, "started once before it is tended"
        now = time.monotonic()
        if self._start_at is None:
            if now - self._started_at > _HEALTHY_SECONDS:
                self._backoff = _FIRST_BACKOFF_SECONDS
            pause, self._backoff = self._backoff, min(2 * self._backoff, _LONGEST_BACKOFF_SECONDS)
            self._start_at = now + pause
            self._sweep()
            how = ended(self._process.returncode)
            return f"{how}: {self.last_words()}; starts again in {pause:.0f} s ({self.log})"
        if now < self._start_at:
            return None
        self.start()
        return f"started again (process {self.pid})"

    def terminate(self) -> None:
        """Asks the process to end."""
        if self._process is not None and self.running:
            self._process.terminate()

    def wait(self, *, cut_short: Callable[[], bool]) -> bool:
        """Waits for the end after `terminate`; kills the group when it takes too long.

        Args:
            cut_short: asked now and then whether to kill it right away.

        Returns:
            Whether it ended by itself.
        """
        deadline = time.monotonic() + self.stop_seconds
        while self.running and time.monotonic() < deadline and not cut_short():
            time.sleep(0.05)
        by_itself = not self.running
        self.kill()
        return by_itself

    def kill(self) -> None:
        """Kills the process and what is left of its group."""
        self._sweep()
        if self._process is not None:
            self._process.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        if not self.log.exists():
            return "no log"
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "no output"

    @property
    def exit_code(self) -> int | None:
        """How the process ended last; None while it runs."""
        return self._process.poll() if self._process else None

    def _sweep(self) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # all of them have ended


def ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = -code in {s.value for s in signal.Signals}
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
