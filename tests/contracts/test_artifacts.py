"""Artifacts: what is recorded of a file, and writing without half files."""

import hashlib
from pathlib import Path

import pytest

from loco.contracts.artifacts import describe, media_type_of
from loco.contracts.files import atomic_write, write_text
from loco.contracts.stages import Stage


def test_a_file_is_described_relative_to_the_root(tmp_path: Path) -> None:
    file = tmp_path / "math" / "runs" / "data.jsonl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    artifact = describe(tmp_path, file, name="data.jsonl", stage=Stage.PREPARE)
    assert artifact.path == "math/runs/data.jsonl"
    assert (artifact.size, artifact.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert artifact.media_type == "application/jsonl"


def test_a_file_outside_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is not in the subpath"):
        describe(root, root / "link", name="link", stage=Stage.PREPARE)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_keeps_the_file_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gguf/unsloth.Q4_K_M.gguf", "application/vnd.gguf"),
        ("Modelfile", "text/plain"),
        ("result.json", "application/json"),
        ("x.unknownext", "application/octet-stream"),
    ],
)
def test_media_types(name: str, kind: str) -> None:
    assert media_type_of(name) == kind
