"""One long-running child of `loco up`: started, restarted with backoff, logged, stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loco.box.liveness import SERVER, Ask, Patience, Watch
from loco.box.log_file import LogFile
from loco.box.private import PRIVATE_UMASK
from loco.stage.deathsig import dying_with_us

_FIRST_BACKOFF_SECONDS = 1.0
_LONGEST_BACKOFF_SECONDS = 30.0
#: A child that lived so long starts again at the first backoff.
_HEALTHY_SECONDS = 60.0
#: What came out of a child that has ended is written by then.
_LOG_SECONDS = 5.0


class Service:
    """A child process that should always run.

    Start it from a thread that lives as long as the child should: the kernel kills the child when
    that thread ends.

    Args:
        name: word before its lines on the terminal, and of its log file.
        command: program and arguments.
        environment: its whole environment.
        log: file its output is appended to, bounded.
        stop_seconds: it gets so long after SIGTERM, then it is killed.
        ask: whether it lives; one that is deaf is ended and started again. None: it is not asked.
        patience: how it is asked.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        stop_seconds: float,
        ask: Ask | None = None,
        patience: Patience = SERVER,
    ) -> None:
        self.name = name
        self.log = log
        self.stop_seconds = stop_seconds
        self._command = list(command)
        self._environment = dict(environment)
        self._ask = ask
        self._patience = patience
        self._watch: Watch | None = None
        self._kill_at: float | None = None
        self._output: LogFile | None = None
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
        self._output = LogFile(self.log)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._output.fileno(),
                stderr=self._output.fileno(),
                env=self._environment,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                umask=PRIVATE_UMASK,
                preexec_fn=dying_with_us(),  # noqa: PLW1509 (two system calls, nothing loaded)
            )
        finally:
            self._output.release()
        if self._ask is not None:
            self._watch = Watch(self._ask, self._process.pid, self._patience)
        self._kill_at = None
        self._started_at = time.monotonic()
        self._start_at = None

    def tend(self) -> str | None:
        """Notices the end of the process and starts it again when its pause is over; ends a deaf one.

        Returns:
            What happened, for people; None when nothing did.
        """
        if self.running:
            return self._tend_deaf()
        assert self._process is not None, "start the service before watching it"
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

    def _tend_deaf(self) -> str | None:
        now = time.monotonic()
        if self._kill_at is not None:
            if now > self._kill_at:
                self._sweep()
            return None
        if self._watch is None or not self._watch.deaf:
            return None
        self._watch.stop()
        self._kill_at = now + self.stop_seconds
        self.terminate()
        return (
            f"runs but does not answer (process {self.pid}): asked to stop, will be killed in "
            f"{self.stop_seconds:.0f} s"
        )

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
        self._hear_out()

    def last_words(self) -> str:
        """The last line it said."""
        if not self.running:
            self._hear_out()
        return (self._output.last_line if self._output else "") or "no output"

    @property
    def exit_code(self) -> int | None:
        """How the process ended last; None while it runs."""
        return self._process.poll() if self._process else None

    def _sweep(self) -> None:
        """Kills what is left of the process's group."""
        if self._process is None:
            return
        if self._watch is not None:
            self._watch.stop()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # all of them have ended

    def _hear_out(self) -> None:
        """Waits until all that it said is in its log."""
        if self._output is not None:
            self._output.wait(_LOG_SECONDS)


def ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = -code in {s.value for s in signal.Signals}
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
