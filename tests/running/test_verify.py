"""Committed files: read-only, and whatever was done to one is noticed when it is used."""

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loco.contracts.artifacts import Artifact
from loco.contracts.errors import ArtifactChanged, NotFound
from loco.contracts.files import sha256_of
from loco.contracts.stages import Stage
from loco.running import verify
from loco.running.verify import intact, sealed, verified

CONTENT = b"row 1\nrow 2\n"
RELATIVE = "math/runs/j1/prepare/a1/training_data.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / RELATIVE
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    path.chmod(0o600)  # as safetensors writes
    return path


@pytest.fixture
def artifact(tmp_path: Path, path: Path) -> Artifact:
    return sealed(tmp_path, path, name="training_data.jsonl", stage=Stage.PREPARE)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their digests."""
    seen: list[Path] = []

    def counting(path: Path) -> str:
        seen.append(path)
        return sha256_of(path)

    monkeypatch.setattr(verify, "sha256_of", counting)
    verify.digests.forget()
    return seen


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has states trusted at once; called, lets the file system's clock tick."""
    monkeypatch.setattr(verify, "_SETTLED_SECONDS", 0.02)
    return lambda: time.sleep(0.05)


def test_a_committed_file_is_read_only_for_all_and_readable_by_all(
    path: Path, artifact: Artifact
) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    path.unlink()  # the folder can be emptied all the same


def _rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"ROW")


def _same_size_and_time(path: Path) -> None:
    times = path.stat()
    _rewritten(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _truncated(path: Path) -> None:
    os.truncate(path, 5)


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"row 3\n")


def _replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(CONTENT.upper())
    other.replace(path)


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize(
    "change", [_rewritten, _same_size_and_time, _truncated, _appended, _replaced]
)
def test_a_changed_file_is_named_with_both_digests_and_the_fix(
    change: Callable[[Path], None],
    remembered: bool,
    tmp_path: Path,
    path: Path,
    artifact: Artifact,
    hashed: list[Path],
    settled: Callable[[], None],
) -> None:
    if remembered:
        settled()
        verified(tmp_path, artifact)
        assert verified(tmp_path, artifact) == path
        assert hashed == [path]  # the second time it was known
    change(path)
    with pytest.raises(ArtifactChanged) as changed:
        verified(tmp_path, artifact)
    for part in (RELATIVE, artifact.sha256, sha256_of(path)):
        assert part in changed.value.message
    assert "Run stage prepare again" in str(changed.value.hint)
    assert not intact(tmp_path, [artifact])


def test_an_edit_through_a_second_name_is_noticed(
    tmp_path: Path,
    path: Path,
    artifact: Artifact,
    hashed: list[Path],
    settled: Callable[[], None],
) -> None:
    published = tmp_path / "math" / "training_data.jsonl"
    os.link(path, published)
    settled()
    verified(tmp_path, artifact)
    _same_size_and_time(published)
    with pytest.raises(ArtifactChanged):
        verified(tmp_path, artifact)


def test_an_editor_that_writes_another_file_leaves_the_committed_one(
    tmp_path: Path, path: Path, artifact: Artifact
) -> None:
    published = tmp_path / "math" / "training_data.jsonl"
    os.link(path, published)
    _replaced(published)
    assert verified(tmp_path, artifact).read_bytes() == CONTENT


def test_a_deleted_file_is_gone(tmp_path: Path, path: Path, artifact: Artifact) -> None:
    verified(tmp_path, artifact)
    path.unlink()
    with pytest.raises(NotFound, match="is missing") as gone:
        verified(tmp_path, artifact)
    assert "Run stage prepare again" in str(gone.value.hint)
    assert not intact(tmp_path, [artifact])


def test_a_link_that_leads_outside_is_not_followed(
    tmp_path: Path, path: Path, artifact: Artifact
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(CONTENT)
    path.unlink()
    path.symlink_to(outside)
    adapters = tmp_path / "math"
    inside = artifact.model_copy(update={"path": RELATIVE.removeprefix("math/")})
    with pytest.raises(NotFound):
        verified(adapters, inside)


def test_a_state_younger_than_a_tick_is_not_trusted(
    tmp_path: Path, path: Path, artifact: Artifact, hashed: list[Path]
) -> None:
    for _ in range(2):
        verified(tmp_path, artifact)
    assert hashed == [path, path]


def test_what_was_touched_only_is_read_once_more_and_served(
    tmp_path: Path,
    path: Path,
    artifact: Artifact,
    hashed: list[Path],
    settled: Callable[[], None],
) -> None:
    settled()
    verified(tmp_path, artifact)
    path.touch()
    settled()
    for _ in range(2):
        assert verified(tmp_path, artifact) == path
    assert len(hashed) == 2


def test_downloads_that_begin_at_once_read_a_file_once(
    tmp_path: Path,
    path: Path,
    artifact: Artifact,
    hashed: list[Path],
    settled: Callable[[], None],
) -> None:
    settled()
    together = threading.Barrier(8)

    def use() -> None:
        together.wait()
        verified(tmp_path, artifact)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hashed == [path]


def test_only_so_many_digests_are_remembered(
    tmp_path: Path,
    hashed: list[Path],
    settled: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "_REMEMBERED", 2)
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(CONTENT)
    settled()
    for path in [*paths, paths[2], paths[0]]:
        verify.digests.of(path)
    assert hashed == [*paths, paths[0]]
