"""A supervised child: restarts with growing pauses, group kill, log."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from loco.box import service as services
from loco.box.service import Service, ended

pytestmark = pytest.mark.redis


def service(tmp_path: Path, program: str, *, stop_seconds: float = 5) -> Service:
    return Service(
        "child",
        [sys.executable, "-c", program],
        environment=os.environ,
        log=tmp_path / "logs" / "child.log",
        stop_seconds=stop_seconds,
    )


def test_a_child_that_keeps_dying_is_started_with_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_FIRST_BACKOFF_SECONDS", 0.1)
    child = service(tmp_path, "print('gone again'); raise SystemExit(3)")
    child.start()
    said: list[str] = []
    started = time.monotonic()
    while len(said) < 6:
        event = child.tend()
        if event:
            said.append(event)
        assert time.monotonic() - started < 20
        time.sleep(0.01)
    assert said[0].startswith("ended with exit code 3: gone again; starts again in")
    assert said[1].startswith("started again")
    assert time.monotonic() - started > 0.1 + 0.2  # the pauses doubled
    child.kill()


def test_a_deaf_child_is_killed_with_its_group(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print(p.pid, flush=True)\ntime.sleep(100)"
    )
    child = service(tmp_path, program, stop_seconds=0.5)
    child.start()
    while not child.last_words().isdigit():
        time.sleep(0.02)
    grandchild = int(child.last_words())
    child.terminate()
    assert child.wait(cut_short=lambda: False) is False
    assert not child.running
    deadline = time.monotonic() + 5
    while _runs(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_polite_child_ends_by_itself(tmp_path: Path) -> None:
    child = service(tmp_path, "import time; print('up', flush=True); time.sleep(100)")
    child.start()
    while child.last_words() != "up":
        time.sleep(0.02)
    child.terminate()
    assert child.wait(cut_short=lambda: False) is True


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (-9, "was killed by SIGKILL"),
        (-35, "was killed by signal 35"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert ended(code) == words


def _runs(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
