"""docs/tutorial.md, typed as it stands into terminals of 80 columns, against a real `loco up`."""

import contextlib
import fcntl
import json
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_page import Command, lines_of, missing, read

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "tutorial.md"
ROWS, COLUMNS = 40, 80
#: Seconds that a command may take; the training on a busy machine takes most of them.
PATIENCE = 1200.0
READY = 90.0
#: Lines of output in a failure.
SHOWN = 80


class Terminal:
    """A program in a terminal of its own, and what it said there."""

    def __init__(self, script: str, cwd: Path, environment: dict[str, str]) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._said: list[bytes] = []
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-c", script],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,))
        self._reader.start()

    def _read(self, ours: int) -> None:
        # EIO: nobody holds the other end any more
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 65536):
                self._said.append(piece)
        os.close(ours)

    @property
    def lines(self) -> list[str]:
        return lines_of(b"".join(self._said).decode(errors="replace"))

    def ended(self, seconds: float) -> int:
        """Its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def stop(self) -> int:
        """Ctrl-C."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.ended(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self._reader.join(60)
            raise


class Reader:
    """Somebody who types what the page says, in a home of their own beside a checkout."""

    def __init__(self, home: Path, checkout: Path) -> None:
        self.home, self.checkout = home, checkout
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("LOCO_")}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            inherited.pop(name, None)
        self.environment = inherited | {
            "HOME": str(home),
            "TERM": "xterm",
            "XDG_STATE_HOME": str(home / "state"),
            "LOCO_PORT": "0",
        }
        self.staying: list[Terminal] = []
        self._new_terminal()

    def _new_terminal(self) -> None:
        """The next command is typed into one: in the checkout, with what nobody exported yet."""
        self._state = self.home / f".terminal-{len(self.staying)}"
        (cwd, variables) = (f"{self._state}.cwd", f"{self._state}.sh")
        Path(cwd).write_text(str(self.checkout))
        Path(variables).write_text("")

    def type(self, command: Command) -> Terminal:
        """Types a command; waits until it has ended, or where it stays, until it says what it should."""
        cwd, variables = Path(f"{self._state}.cwd"), Path(f"{self._state}.sh")
        kept = f"export -p > {shlex.quote(str(variables))}; pwd > {shlex.quote(str(cwd))}"
        begin = f"source {shlex.quote(str(variables))}\n"
        script = begin + (
            command.text if command.stays else f"{command.text}\ncode=$?; {kept}; exit $code"
        )
        terminal = Terminal(script, Path(cwd.read_text().strip()), self.environment)
        if command.stays:
            self.staying.append(terminal)
            self._new_terminal()
            self._wait(terminal, command)
        else:
            try:
                code = terminal.ended(PATIENCE)
            except subprocess.TimeoutExpired:
                terminal.stop()
                raise
            assert code == 0, told(command, terminal)
        lost = missing(command.promised, terminal.lines)
        assert lost is None, f"The page promises {lost!r}. {told(command, terminal)}"
        return terminal

    def _wait(self, terminal: Terminal, command: Command) -> None:
        deadline = time.monotonic() + READY
        while missing(command.promised, terminal.lines) is not None:
            assert terminal.process.poll() is None, told(command, terminal)
            assert time.monotonic() < deadline, told(command, terminal)
            time.sleep(0.1)


def told(command: Command, terminal: Terminal) -> str:
    said = "\n".join(terminal.lines[-SHOWN:])  # a live view is drawn thousands of times
    return f"{PAGE.name}, line {command.line}: {command.text}\n{said}"


@pytest.fixture
def reader(tmp_path: Path, adapters_dir: Path) -> Iterator[Reader]:
    """A checkout after `make setup`, and a home with nothing in it."""
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    checkout.mkdir()
    home.mkdir()
    adapters_dir.rename(checkout / "adapters")
    shutil.copytree(PAGE.parent / "tutorial", checkout / "docs" / "tutorial")
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / ".venv-train").symlink_to(REPOSITORY / ".venv-train")
    typing = Reader(home, checkout)
    yield typing
    for terminal in typing.staying:
        terminal.stop()


def test_every_command_of_the_tutorial_does_what_the_page_says(reader: Reader) -> None:
    page = read(PAGE.read_text(encoding="utf-8"))
    for command in page.commands:
        began = time.monotonic()
        terminal = reader.type(command)
        print(
            f"$ {command.text}  # {time.monotonic() - began:.1f} s",
            *terminal.lines[-SHOWN:],
            sep="\n",
        )
    # whatever the page promises: its model beats its base, was promoted for it, and serves
    asked = Command("loco versions loans --json", 0)
    versions = json.loads("\n".join(reader.type(asked).lines))
    assert [v["gate"]["verdict"] for v in versions] == ["better"]
    assert versions[0]["promoted"]
    assert versions[0]["served_at"]
    assert [terminal.stop() for terminal in reader.staying] == [0]
