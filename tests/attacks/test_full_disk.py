"""Somebody fills the disk.

`loco up` ended for good, a job said `internal`, and /readyz was ready while Redis took no writes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from loco.box import redis_server, up
from loco.box.room import Room
from loco.contracts.disk import disk_full, free_bytes, is_disk_full
from loco.contracts.errors import DiskFull
from loco.contracts.jobs import JobStatus
from loco.contracts.program_events import ErrorEvent, LogEvent
from loco.ledger.ledger import Ledger
from loco.running import runner as runners
from loco.running.child import Child
from loco.running.runner import Runner

pytestmark = pytest.mark.redis

FULL = Path("/dev/full")  # every write to it fails as one to a full disk
ROOM = 20_000_000

#: Run in a mount namespace of its own, where argv[1] is a small disk.
ON_A_SMALL_DISK = """
import json, sys, threading, time
from pathlib import Path
import redis
from loco.box.own_redis import OwnRedis
from loco.box.room import Room
from loco.contracts.errors import RedisUnavailable
from loco.ledger.ledger import Ledger

disk = Path(sys.argv[1])
room = Room(disk, needed=4_000_000)
own = OwnRedis(disk / "redis", threading.Event())
said, pids = [room.event()], [own.pid]
ledger = Ledger.connect(own.url)
ledger.require_writes()
client = redis.Redis.from_url(own.url)
client.set("accepted", "x" * 1000)

def tend(until):
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline, said
        said.extend(e for e in (room.event(), own.tend(room=not room.lacking)[0]) if e)
        time.sleep(0.05)

filler = (disk / "filler").open("wb", buffering=0)
try:
    while filler.write(b"x" * 65536): pass
except OSError: pass
try:  # its page of the append-only file may have had room left
    for _ in range(100): client.set("more", "x" * 1000)
except redis.ConnectionError: pass
try:
    ledger.require_writes()
except RedisUnavailable as error:
    said.append(error.code)
tend(lambda: any("when the disk has free space" in s for s in said if s))
(disk / "filler").unlink(); filler.close()
tend(lambda: own.pid != pids[0])
ledger.require_writes()
print(json.dumps([said, len(redis.Redis.from_url(own.url).get("accepted"))]))
own.stop()
"""


def test_redis_waits_for_room_and_keeps_what_was_accepted(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size={ROOM} tmpfs {disk} && exec "$@"'
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    program = [sys.executable, "-c", ON_A_SMALL_DISK, str(disk)]
    done = subprocess.run(
        ["unshare", "--mount", *user, "sh", "-c", mount, "sh", *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, kept = json.loads(done.stdout.splitlines()[-1])
    assert kept == 1000
    assert said[0] is None
    assert "redis_unavailable" in said
    full = next(s for s in said if s and s.startswith("disk_full"))
    assert f"The disk of {disk} is full: " in full
    assert "4000000 are needed" in full
    order = [
        "when the disk has free space",
        "there is free space again",
        "started again on its data",
    ]
    places = [next(i for i, s in enumerate(said) if s and words in s) for words in order]
    assert places == sorted(places)


def test_room_is_told_of_once(tmp_path: Path) -> None:
    room = Room(tmp_path, needed=10**18)
    full = room.event()
    assert full is not None
    assert full.startswith(f"disk_full: The disk of {tmp_path} is full: ")
    assert f"{10**18} are needed" in full
    assert room.lacking
    assert room.event() is None
    assert Room(tmp_path, needed=1).event() is None
    assert free_bytes(tmp_path / "not" / "made") > 0


def test_the_terminals_file_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space"), FULL.open("w") as full:  # noqa: PT012
        monkeypatch.setattr(sys, "stdout", full)
        up.say("redis", "started")  # does not raise; closing the file does


def test_a_stage_program_says_disk_full_though_it_cannot_write_its_log(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    program = (
        "import sys\nfrom loco.contracts.stages import Stage\nfrom loco.stage import program\n"
        "program._load = lambda *_: (None, None)\n"
        "def run(spec, inputs, out, emit):\n"
        "    for n in range(3): emit.log(f'line {n}')\n"
        "    with open('/dev/full', 'w') as file: file.write('rows')\n"
        "sys.exit(program.main(Stage.PREPARE, run))\n"
    )
    arguments = ["--spec", str(tmp_path / "spec.json"), "--out", str(tmp_path / "a1")]
    child = Child(
        [sys.executable, "-c", program, *arguments], log=FULL, environment=dict(os.environ)
    )
    assert child.finish() == 1
    events = []
    while (event := child.event(0)) is not None:
        events.append(event)
    *lines, last = events
    assert [e.message for e in lines if isinstance(e, LogEvent)] == [f"line {n}" for n in range(3)]
    assert isinstance(last, ErrorEvent)
    assert last.error.code == "disk_full"
    assert last.retryable
    assert f"The disk of {tmp_path / 'a1'} is full: " in last.error.message
    assert "bytes are free" in last.error.message


def test_what_libraries_say_of_a_full_disk_is_understood() -> None:
    wrapped = RuntimeError("I/O error: No space left on device (os error 28)")
    assert is_disk_full(wrapped)
    with pytest.raises(ValueError, match="cannot save") as saving:
        _save()
    assert is_disk_full(saving.value)
    assert not is_disk_full(OSError(2, "No such file"))


def _save() -> None:
    try:
        FULL.write_text("x")
    except OSError as error:
        raise ValueError("cannot save") from error


def test_an_attempt_that_finds_no_room_is_tried_again(
    ledger: Ledger, spec, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "write_text", lambda *_: FULL.write_text("spec"))
    job = ledger.submit(spec(stages=("prepare",)))[0]
    runner = Runner(ledger, settings, worker_id="w", send_hint=lambda *_: None)
    assert runner.run_one(runners.Queue.CPU)
    task = ledger.job(job.id).stages[0]
    assert task.error is not None
    assert task.error.code == "disk_full"
    assert f"The disk of {settings.adapters_dir} is full: " in task.error.message
    assert ledger.job(job.id).status is not JobStatus.FAILED


def test_disk_full_names_what_is_needed(tmp_path: Path) -> None:
    error = disk_full(tmp_path, needed=5)
    assert isinstance(error, DiskFull)
    assert error.message.endswith("bytes are free, and 5 are needed.")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[str]:
    """A Redis that answers and takes no writes, as one with a full disk or a replica does."""
    server = redis_server.start(tmp_path / "redis")
    with redis.Redis.from_url(server.url) as client:
        client.replicaof("127.0.0.1", 1)
    yield server.url
    server.stop()


def test_not_ready_while_redis_takes_no_writes(live_api, read_only: str) -> None:
    live_api.stop()
    live_api.settings = live_api.settings.model_copy(update={"redis_url": read_only})
    live_api.start()
    answer = httpx.get(f"{live_api.url}/readyz", trust_env=False, timeout=30)
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert "does not accept writes" in answer.json()["error"]["message"]
