"""Another user reads the ledger from a data folder that an earlier release left open.

Its folder was 0755 and Redis's append-only file 0644, with the hashes of keys and every job's rows.
"""

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from loco.box.private import take_from_others
from loco.box.service import Service
from loco.contracts.errors import InvalidRequest


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_was_open_is_closed_and_the_rest_of_the_folder_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    aof = data / "redis" / "appendonlydir" / "appendonly.aof.1.incr.aof"
    aof.parent.mkdir(parents=True)
    aof.write_text("*1")
    theirs = data / "thesis.txt"
    theirs.write_text("mine")
    outside = tmp_path / "outside"
    outside.write_text("not in the data folder")
    (data / "redis" / "link").symlink_to(outside)
    for path in (data, data / "redis", aof.parent):
        path.chmod(0o755)
    for path in (aof, theirs, outside):
        path.chmod(0o644)

    assert aof in take_from_others(data, ("redis", "logs"))
    assert [mode(p) for p in (data, data / "redis", aof.parent, aof)] == [0o700] * 3 + [0o600]
    assert mode(theirs) == mode(outside) == 0o644
    assert take_from_others(data, ("redis", "logs")) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    with pytest.raises(InvalidRequest, match="of uid 65534") as refused:
        take_from_others(data, ())
    assert "chown" in str(refused.value.hint)


def test_a_link_of_the_user_is_followed_and_what_it_leads_to_is_closed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "large disk"
    elsewhere.mkdir(mode=0o755)
    (tmp_path / "data").symlink_to(elsewhere)
    assert take_from_others(tmp_path / "data", ()) == []
    assert mode(elsewhere) == 0o700


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "to file").symlink_to(tmp_path / "file")
    for name, words in (
        ("file", "a file"),
        ("nowhere", "a link to nothing"),
        ("to file", "a file"),
    ):
        with pytest.raises(InvalidRequest, match=f"is {words}"):
            take_from_others(tmp_path / name, ())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link away")
def test_a_link_of_another_user_and_a_link_to_anothers_folder_are_refused(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
        (tmp_path / f"to {folder.name}").symlink_to(folder)
    os.chown(theirs, 65534, 65534)
    os.chown(tmp_path / "to mine", 65534, 65534, follow_symlinks=False)
    with pytest.raises(InvalidRequest, match="a link that belongs to uid 65534"):
        take_from_others(tmp_path / "to mine", ())
    with pytest.raises(InvalidRequest, match="of uid 65534"):
        take_from_others(tmp_path / "to theirs", ())


def test_what_a_service_writes_is_private(tmp_path: Path) -> None:
    program = f"import os; os.mkdir({str(tmp_path / 'd')!r}); open({str(tmp_path / 'd/f')!r}, 'w')"
    log = tmp_path / "logs" / "child.log"
    service = Service(
        "child", [sys.executable, "-c", program], environment=os.environ, log=log, stop_seconds=5
    )
    service.start()
    deadline = time.monotonic() + 60
    while service.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    service.kill()
    assert service.exit_code == 0
    assert [mode(p) for p in (tmp_path / "d", tmp_path / "d/f", log.parent)] == [
        0o700,
        0o600,
        0o700,
    ]
