"""Requests make a service say the same thing for ever, and its log fills the disk.

1,100 half-open connections at `ulimit -n 1024` had the API write the same traceback without end: 720 MB
in 80 seconds. A log was put aside only when its service started.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loco.box import redis_server
from loco.box.log_file import LONGEST_LOG_BYTES, MOST_OF_A_KIND, LogFile
from loco.box.service import Service
from loco.running.child import Child

pytestmark = pytest.mark.redis

#: What asyncio says of each connection it has no descriptor for.
FLOOD = """\
import sys
for n in range(20_000):
    print(f"2026-11-28 05:00:{n % 60:02},{n % 1000:03} ERROR asyncio socket.accept() out of system resource")
    print(f"socket: <asyncio.TransportSocket fd={n}, family=2, type=1, laddr=('127.0.0.1', 8321)>")
    print("Traceback (most recent call last):")
    print('  File "asyncio/selector_events.py", line 178, in _accept_connection')
    print("OSError: [Errno 24] Too many open files")
print("the end")
"""


def test_a_line_that_comes_without_end_is_counted(tmp_path: Path) -> None:
    service = _run(tmp_path, FLOOD)
    text = service.log.read_text()
    assert len(text) < 20 * 5 * MOST_OF_A_KIND * 100  # 8 MB came
    assert text.splitlines().count("the end") == 1
    counts = [line for line in text.splitlines() if " more like this " in line]
    left_out = sum(int(line.split()[1]) for line in counts)
    assert left_out + len(text.splitlines()) - len(counts) == 5 * 20_000 + 1
    assert any("out of system resource" in line for line in counts)
    assert service.last_words() == "the end"


def test_a_log_is_rotated_while_it_is_written(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "a.log", longest=10_000)
    for n in range(600):
        os.write(log.fileno(), f"{'abcdefghij'[n % 10] * (n // 10 + 1)} {'x' * 100}\n".encode())
        if n % 20 == 0:
            time.sleep(0.002)  # so that it does not come in one piece
    log.release()
    log.wait(60)
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["a.log", "a.log.1"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "logs").iterdir())
    assert sum(path.stat().st_size for path in (tmp_path / "logs").iterdir()) < 150_000


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    program = "import sys\nfor _ in range(200): sys.stdout.write('x' * 65_536)"
    service = _run(tmp_path, program)
    lines = service.log.read_text().splitlines()
    assert max(map(len, lines)) < 20_000


def test_a_service_does_not_wait_for_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "logs" / "child.log").mkdir(parents=True)  # every open fails
    program = "for n in range(50_000): print('line', n)\nprint('done')"
    service = _run(tmp_path, program)
    assert service.exit_code == 0
    assert service.last_words() == "done"


def test_what_the_disk_refused_is_said_when_there_is_room_again(tmp_path: Path) -> None:
    place = tmp_path / "logs" / "a.log"
    place.mkdir(parents=True)
    log = LogFile(place, window=0.1)
    os.write(log.fileno(), b"lost\n")
    _wait_for(lambda: log.last_line == "lost")
    time.sleep(0.1)
    place.rmdir()
    _wait_for(place.exists)
    assert place.read_text() == "... 5 bytes of this log are lost: the disk was full or slow\n"
    log.release()
    log.wait(60)


def test_the_log_of_an_attempt_keeps_its_start_and_its_end(tmp_path: Path) -> None:
    """Before: it grew until the disk was full."""
    program = "import sys\nprint('x' * 300_000, file=sys.stderr)\ninput()\nprint('the end', file=sys.stderr)"
    log = tmp_path / "log.txt"
    child = Child([sys.executable, "-c", program], log=log, environment=dict(os.environ))
    _wait_for(lambda: log.stat().st_size == 300_001)
    child.bound_log(300_001)
    assert log.stat().st_size == 300_001
    child.bound_log(100_000)
    child.tick()  # it goes on
    assert child.finish() == 0
    left_out = "\n... 250001 bytes of this log are left out\n"
    assert log.read_text() == "x" * 50_000 + left_out + "the end\n"


def test_the_log_of_redis_is_put_aside_at_a_start(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    with (folder / "redis.log").open("wb") as log:
        log.truncate(LONGEST_LOG_BYTES + 1)
    redis_server.start(folder).stop()
    assert (folder / "redis.log").stat().st_size < 100_000
    assert (folder / "redis.log.1").stat().st_size == LONGEST_LOG_BYTES + 1


def _run(tmp_path: Path, program: str) -> Service:
    """A service that has run to its end."""
    service = Service(
        "child",
        [sys.executable, "-c", program],
        environment=os.environ,
        log=tmp_path / "logs" / "child.log",
        stop_seconds=5,
    )
    service.start()
    _wait_for(lambda: not service.running)
    service.kill()
    return service


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
