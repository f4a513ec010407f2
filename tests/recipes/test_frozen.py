"""The store of frozen inputs: copies by content, whole or not at all, and what is no file."""

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from loco.contracts.artifacts import FrozenFile
from loco.contracts.errors import DataError, LocoError, NotFound
from loco.recipes import frozen
from loco.recipes.frozen import STORE, freeze, frozen_file, is_intact


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"one\n")
    return file


def kept(adapters: Path) -> list[str]:
    """What the store holds, temporary files too."""
    return sorted(
        p.relative_to(adapters / STORE).as_posix()
        for p in (adapters / STORE).rglob("*")
        if not p.is_dir()
    )


def test_a_copy_is_read_only_named_by_its_content_and_no_link(rows: Path, tmp_path: Path) -> None:
    made = freeze(rows, "sub/rows.jsonl", tmp_path)
    sha = hashlib.sha256(b"one\n").hexdigest()
    assert made == FrozenFile(path=f"{STORE}/{sha}/rows.jsonl", sha256=sha, size=4)
    copy = tmp_path / made.path
    assert copy.stat().st_mode & 0o777 == 0o444
    assert copy.stat().st_nlink == 1
    rows.write_bytes(b"two\n")  # in place
    assert copy.read_bytes() == b"one\n"
    assert is_intact(tmp_path, "rows.jsonl", made)


def test_the_same_content_is_copied_once(rows: Path, tmp_path: Path) -> None:
    first = freeze(rows, "rows.jsonl", tmp_path)
    copied = (tmp_path / first.path).stat().st_ino
    again = tmp_path / "elsewhere" / "rows.jsonl"
    again.parent.mkdir()
    again.write_bytes(b"one\n")
    assert freeze(again, "elsewhere/rows.jsonl", tmp_path) == first
    assert (tmp_path / first.path).stat().st_ino == copied
    assert len(kept(tmp_path)) == 1


def test_an_edit_is_noticed_though_size_and_time_stay(rows: Path, tmp_path: Path) -> None:
    first = freeze(rows, "rows.jsonl", tmp_path)
    then = rows.stat()
    rows.write_bytes(b"two\n")
    os.utime(rows, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert freeze(rows, "rows.jsonl", tmp_path).sha256 != first.sha256


def test_a_file_at_rest_is_not_read_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "_AT_REST_SECONDS", -1)
    first = freeze(rows, "rows.jsonl", tmp_path)
    assert freeze(rows, "rows.jsonl", tmp_path) == first  # now the copy has been read, too
    reads: list[object] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: reads.append(a) or digest(*a))
    assert freeze(rows, "rows.jsonl", tmp_path) == first
    assert reads == []
    rows.write_bytes(b"two\n")
    assert freeze(rows, "rows.jsonl", tmp_path) != first
    assert reads


def test_a_damaged_copy_is_replaced(rows: Path, tmp_path: Path) -> None:
    made = freeze(rows, "rows.jsonl", tmp_path)
    copy = tmp_path / made.path
    copy.chmod(0o644)
    copy.write_bytes(b"bad\n")
    assert not is_intact(tmp_path, "rows.jsonl", made)
    assert freeze(rows, "rows.jsonl", tmp_path) == made
    assert copy.read_bytes() == b"one\n"


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "missing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "secret").write_text("secret")
        path.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="'thing'"):
        freeze(path, "thing", tmp_path)
    assert not (tmp_path / STORE).exists()


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a regular file"):
        freeze(Path("/dev/zero"), "zero", tmp_path)


def test_a_file_that_may_not_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in a folder that is closed itself
        folder = Path(name)
        folder.chmod(0o777)
        rows = folder / "rows.jsonl"
        rows.write_bytes(b"one\n")
        rows.chmod(0)
        am_root = os.geteuid() == 0
        if am_root:
            os.seteuid(65534)
        try:
            with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
                freeze(rows, "rows.jsonl", folder)
        finally:
            if am_root:
                os.seteuid(0)
    assert "Allow the server's user to read" in str(caught.value.hint)


def test_a_store_that_cannot_be_written_is_said(rows: Path, tmp_path: Path) -> None:
    (tmp_path / STORE).write_text("in the way")
    with pytest.raises(LocoError, match="cannot be copied") as caught:
        freeze(rows, "rows.jsonl", tmp_path)
    assert not isinstance(caught.value, DataError)


FULL = """
import resource, sys
from pathlib import Path
from loco.contracts.errors import DiskFull
from loco.recipes.frozen import freeze
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    freeze(Path(sys.argv[1]), "rows.jsonl", Path(sys.argv[2]))
except DiskFull as error:
    print(error.message)
"""


def test_no_room_is_said_and_nothing_is_left(rows: Path, tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 100_000
    rows.write_bytes(bytes(3_000_000))
    said = subprocess.run(
        [sys.executable, "-c", FULL, rows, tmp_path], capture_output=True, text=True, check=True
    )
    assert "no space for a copy of 'rows.jsonl' (3.0 MB)" in said.stdout
    assert kept(tmp_path) == []


def test_more_than_the_disk_has_is_not_begun(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rows.open("wb") as file:  # sparse: larger than what is free, and takes no disk
        file.truncate(1 << 20)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000}))
    with pytest.raises(LocoError) as caught:
        freeze(rows, "rows.jsonl", tmp_path)
    assert (caught.value.code, caught.value.status) == ("disk_full", 507)
    assert kept(tmp_path) == []


def test_a_file_that_is_always_written_is_refused(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = frozen._copy

    def copy_and_meet_a_writer(source, target, size):
        with rows.open("ab") as file:
            file.write(b"more\n")
        return copy(source, target, size)

    monkeypatch.setattr(frozen, "_copy", copy_and_meet_a_writer)
    with pytest.raises(DataError, match="is changing right now"):
        freeze(rows, "rows.jsonl", tmp_path)
    assert kept(tmp_path) == []


def test_many_freeze_the_same_file_at_once(rows: Path, tmp_path: Path) -> None:
    rows.write_bytes(os.urandom(2_000_000))
    made: list[FrozenFile] = []
    threads = [
        threading.Thread(target=lambda: made.append(freeze(rows, "rows.jsonl", tmp_path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len({f.sha256 for f in made}) == 1
    assert kept(tmp_path) == [f"{made[0].sha256}/rows.jsonl"]


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "math/adapter.yaml", f"{STORE}/link"])
def test_a_record_that_leads_out_of_the_store_is_not_followed(tmp_path: Path, path: str) -> None:
    (tmp_path / STORE).mkdir()
    (tmp_path / STORE / "link").symlink_to("/etc/passwd")
    record = FrozenFile(path=path, sha256="0" * 64, size=1)
    with pytest.raises(NotFound, match="outside the store"):
        frozen_file(tmp_path, "x", record)
