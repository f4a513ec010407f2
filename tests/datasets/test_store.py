"""The store of uploads: what goes on, ends, is found again, and expires."""

import os
import time
from pathlib import Path

import pytest

from loco.contracts.datasets import DataSetDetail
from loco.contracts.errors import Conflict, DiskFull, NotFound, QuotaExceeded
from loco.datasets import store, uploads
from loco.datasets.inspect import inspect
from loco.datasets.names import name_of
from loco.datasets.store import STORE, DataSets
from loco.datasets.uploads import Limits
from loco.recipes.frozen import freeze

ROWS = b'{"question": "How far is a mile?", "answer": "1.6 km"}\n'


@pytest.fixture
def sets(tmp_path: Path) -> DataSets:
    return DataSets(tmp_path, Limits(file=10_000, owner=20_000, count=10))


def pushed(sets: DataSets, name: str = "units", owner: str = "anna") -> tuple[DataSetDetail, bool]:
    record = sets.begin(name, owner, length=len(ROWS))
    with sets.writing(record.id, owner) as part:
        part.append(ROWS)
        return sets.finish(part, inspect)


def test_an_upload_goes_on_where_it_was_left(sets: DataSets) -> None:
    record = sets.begin("units", "anna", length=len(ROWS))
    with sets.writing(record.id, "anna") as part:
        part.append(ROWS[:10])
    assert sets.get("units", "anna").bytes == 10
    with sets.writing(record.id, "anna") as part:
        assert part.offset == 10
        part.append(ROWS[10:])
        found, is_new = sets.finish(part, inspect)
    assert is_new
    assert (found.id, found.status, found.rows) == (record.id, "ready", 1)
    assert sets.content(found).read_bytes() == ROWS
    assert sets.get(record.id, "anna").first[0].messages[1]["content"] == "1.6 km"


def test_the_same_content_is_kept_once_and_the_same_data_set_is_one(
    sets: DataSets, tmp_path: Path
) -> None:
    first, _ = pushed(sets)
    again, is_new = pushed(sets)
    assert (again.id, is_new) == (first.id, False)
    other, _ = pushed(sets, owner="ben")
    assert other.id != first.id
    assert len(list((tmp_path / STORE / "content").iterdir())) == 1
    sets.delete(first)
    assert sets.content(other).read_bytes() == ROWS
    sets.delete(other)
    with pytest.raises(NotFound):
        sets.content(other)


def test_a_frozen_copy_is_the_same_file_and_outlives_the_data_set(
    sets: DataSets, tmp_path: Path
) -> None:
    found, _ = pushed(sets)
    frozen = freeze(sets.content(found), "units.jsonl", tmp_path, link=True)
    copy = tmp_path / frozen.path
    assert copy.samefile(sets.content(found))
    assert frozen.sha256 == found.sha256
    sets.delete(found)
    assert copy.read_bytes() == ROWS


def test_what_jobs_still_read_counts_after_it_was_deleted(sets: DataSets, tmp_path: Path) -> None:
    """Before: upload, submit, delete, again and again, filled the disk beside the quota."""
    few = DataSets(tmp_path, Limits(file=10_000, owner=2 * len(ROWS), count=10))
    first, _ = pushed(few)
    frozen = freeze(few.content(first), "units.jsonl", tmp_path, link=True)
    few.delete(first)
    second, _ = pushed(few)
    few.delete(second)
    pushed(few)
    with pytest.raises(QuotaExceeded, match="of them deleted, but still read by jobs"):
        few.begin("more", "anna", length=len(ROWS))
    few.begin("more", "ben", length=len(ROWS))
    (tmp_path / frozen.path).unlink()
    (tmp_path / frozen.path).parent.rmdir()  # the job is deleted
    few.begin("more", "anna", length=len(ROWS))


def test_where_links_cannot_be_had_it_is_copied(
    sets: DataSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = pushed(sets)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    frozen = freeze(sets.content(found), "units.jsonl", tmp_path, link=True)
    assert (tmp_path / frozen.path).read_bytes() == ROWS
    assert not (tmp_path / frozen.path).samefile(sets.content(found))


def test_what_nobody_goes_on_with_expires_and_gives_its_place_back(
    sets: DataSets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sets.begin("units", "anna", length=9000)
    with sets.writing(record.id, "anna") as part:
        part.append(b"x")
        monkeypatch.setattr(store, "UPLOAD_SECONDS", 0.0)
        assert [d.id for d in sets.list("anna")] == [record.id], "one that is written to stays"
    time.sleep(0.01)
    assert sets.list("anna") == []
    with pytest.raises(NotFound):
        sets.get(record.id, "anna")
    assert list((tmp_path / STORE / "open").iterdir()) == []


def test_a_name_means_the_newest_that_can_be_used(sets: DataSets) -> None:
    first, _ = pushed(sets)
    sets.begin("units", "anna", length=5)
    assert sets.get("units", "anna").id == first.id
    with pytest.raises(NotFound):
        sets.get("units", "ben")
    with pytest.raises(NotFound):
        sets.get("units", "ben", sees_all=True)
    assert sets.get(first.id, "ben", sees_all=True).id == first.id


def test_a_job_cannot_read_half_an_upload(sets: DataSets) -> None:
    record = sets.begin("units", "anna", length=5)
    with pytest.raises(Conflict, match="still uploading"):
        sets.content(record)


@pytest.mark.parametrize(
    ("file", "name"),
    [("rows.jsonl", "rows"), ("Fragen & Antworten.csv", "Fragen-Antworten"), ("ü.csv", "data")],
)
def test_a_file_names_its_data_set(file: str, name: str) -> None:
    assert name_of(Path(file)) == name


def test_what_arrives_leaves_the_disk_some_room(
    sets: DataSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: an upload of unknown length promised nothing, and filled the disk to its end."""
    free = uploads.LEFT_FREE + 100
    monkeypatch.setattr(uploads, "free_bytes", lambda folder: free)
    monkeypatch.setattr(store, "free_bytes", lambda folder: free + 10_000)
    record = sets.begin("units", "anna")
    with pytest.raises(DiskFull):
        sets.begin("more", "ben", length=101)
    with sets.writing(record.id, "anna") as part:
        part.append(ROWS)
        with pytest.raises(DiskFull):
            part.append(b"x" * 101)
        free = 0
        part.append(b"")
        assert sets.finish(part, inspect)[0].rows == 1, "what had arrived is kept"


def test_an_upload_that_ends_while_it_is_deleted_stays_whole(
    sets: DataSets, tmp_path: Path
) -> None:
    """Before: its record went, and its rows stayed without an owner."""
    sets.begin("units", "anna", length=len(ROWS))
    seen = sets.get("units", "anna")
    with sets.writing(seen.id, "anna") as part:
        part.append(ROWS)
        sets.finish(part, inspect)
    with pytest.raises(Conflict, match="just ended"):
        sets.delete(seen)
    ready = sets.get(seen.id, "anna")
    assert sets.content(ready).read_bytes() == ROWS
    sets.delete(ready)
    assert not list((tmp_path / STORE / "content").iterdir())
