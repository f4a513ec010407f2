"""Publishing: whole files at the well-known places, and the newest job wins."""

import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from loco.contracts.artifacts import describe
from loco.contracts.errors import ArtifactChanged, NotFound
from loco.contracts.files import PUBLISH_LOCK
from loco.contracts.jobs import StageStatus, Task
from loco.contracts.stages import Stage
from loco.running import publish as publishing

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def publish(adapters: Path, adapter: str, task: Task) -> bool:
    return publishing.publish(adapters, adapters / adapter, task)


def committed(
    adapters: Path, job: str, stage: Stage, files: dict[str, str], *, minutes: int = 0
) -> Task:
    folder = adapters / "math" / "runs" / job / stage / "a1"
    artifacts = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        artifacts.append(describe(adapters, path, name=name, stage=stage))
    return Task(
        task_id=f"{job}-{stage}",
        job_id=job,
        stage=stage,
        status=StageStatus.SUCCEEDED,
        artifacts=tuple(artifacts),
        finished_at=NOON + timedelta(minutes=minutes),
    )


def test_well_known_files_are_links_and_others_stay_in_the_run(tmp_path: Path) -> None:
    task = committed(
        tmp_path, "j1", Stage.PREPARE, {"training_data.jsonl": "rows", "held_out.jsonl": "h"}
    )
    assert publish(tmp_path, "math", task)
    place = tmp_path / "math" / "training_data.jsonl"
    assert place.read_text() == "rows"
    assert place.samefile(tmp_path / task.artifacts[0].path)
    assert not (tmp_path / "math" / "held_out.jsonl").exists()


def test_a_stand_in_is_published_in_a_folder_of_its_own(tmp_path: Path) -> None:
    real = committed(tmp_path, "j1", Stage.EXPORT, {"gguf/unsloth.Q4_K_M.gguf": "4B"})
    stand_in = committed(
        tmp_path, "j2", Stage.EXPORT, {"gguf/unsloth.Q4_K_M.gguf": "135M"}, minutes=1
    )
    publish(tmp_path, "math", real)
    publish(tmp_path, "math/served/locollm-math-tiny", stand_in)
    here = tmp_path / "math"
    assert (here / "gguf" / "unsloth.Q4_K_M.gguf").read_text() == "4B"
    served = here / "served" / "locollm-math-tiny" / "gguf" / "unsloth.Q4_K_M.gguf"
    assert served.read_text() == "135M"


def test_publishing_twice_is_the_same_as_once(tmp_path: Path) -> None:
    task = committed(
        tmp_path, "j1", Stage.EXPORT, {"gguf/unsloth.Q4_K_M.gguf": "g", "Modelfile": "FROM x"}
    )
    assert publish(tmp_path, "math", task)
    assert publish(tmp_path, "math", task)
    names = sorted(p.relative_to(tmp_path / "math").as_posix() for p in _files(tmp_path / "math"))
    assert names == [
        ".publish.lock",
        "Modelfile",
        "gguf/unsloth.Q4_K_M.gguf",
        "runs/j1/export/a1/Modelfile",
        "runs/j1/export/a1/gguf/unsloth.Q4_K_M.gguf",
    ]


def test_a_new_quantization_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """`gguf/` kept the file of a job before, which nothing described any more."""
    old = committed(tmp_path, "j1", Stage.EXPORT, {"gguf/unsloth.Q8_0.gguf": "old"})
    new = committed(tmp_path, "j2", Stage.EXPORT, {"gguf/unsloth.Q4_K_M.gguf": "new"}, minutes=1)
    assert publish(tmp_path, "math", old)
    gguf = tmp_path / "math" / "gguf"
    for name in ("mine.gguf", "unsloth.Q5_K_M.gguf"):  # Unsloth itself calls its files so
        (gguf / name).write_text("a user's own")
    assert publish(tmp_path, "math", new)
    assert sorted(p.name for p in gguf.iterdir()) == [
        "mine.gguf",
        "unsloth.Q4_K_M.gguf",
        "unsloth.Q5_K_M.gguf",
    ]
    prepared = committed(tmp_path, "j3", Stage.PREPARE, {"training_data.jsonl": "{}"}, minutes=2)
    assert publish(tmp_path, "math", prepared)
    assert (gguf / "unsloth.Q4_K_M.gguf").read_text() == "new"


def test_checkpoints_are_replaced_as_a_whole(tmp_path: Path) -> None:
    first = committed(
        tmp_path, "j1", Stage.TRAIN, {"checkpoints/adapter.st": "1", "checkpoints/only_old": "x"}
    )
    second = committed(tmp_path, "j2", Stage.TRAIN, {"checkpoints/adapter.st": "2"}, minutes=1)
    publish(tmp_path, "math", first)
    publish(tmp_path, "math", second)
    place = tmp_path / "math" / "checkpoints"
    assert [p.name for p in place.iterdir()] == ["adapter.st"]
    assert (place / "adapter.st").read_text() == "2"
    assert not _leftovers(tmp_path)


def test_an_older_job_never_replaces_a_newer_one(tmp_path: Path) -> None:
    old = committed(tmp_path, "j1", Stage.PREPARE, {"training_data.jsonl": "old"})
    new = committed(tmp_path, "j2", Stage.PREPARE, {"training_data.jsonl": "new"}, minutes=5)
    assert publish(tmp_path, "math", new)
    assert not publish(tmp_path, "math", old)
    assert (tmp_path / "math" / "training_data.jsonl").read_text() == "new"


def test_files_are_copied_where_links_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    task = committed(tmp_path, "j1", Stage.TRAIN, {"checkpoints/a": "1"})
    monkeypatch.setattr(os, "link", refuse)
    publish(tmp_path, "math", task)
    copy = tmp_path / "math" / "checkpoints" / "a"
    assert copy.read_text() == "1"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o444


def test_a_file_that_was_changed_since_its_commit_is_not_published(tmp_path: Path) -> None:
    names = ("gguf/unsloth.Q4_K_M.gguf", "Modelfile")
    good, bad = (
        committed(tmp_path, job, Stage.EXPORT, dict.fromkeys(names, job), minutes=minute)
        for minute, job in enumerate(("good", "bad"))
    )
    publish(tmp_path, "math", good)
    (tmp_path / bad.artifacts[0].path).write_text("BAD")
    with pytest.raises(ArtifactChanged):
        publish(tmp_path, "math", bad)
    assert [(tmp_path / "math" / name).read_text() for name in names] == ["good"] * 2
    assert not _leftovers(tmp_path)


def test_without_an_atomic_exchange_the_folder_is_still_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_exchange", lambda *_: False)
    for minute, job in enumerate(("j1", "j2")):
        task = committed(tmp_path, job, Stage.TRAIN, {"checkpoints/a": job}, minutes=minute)
        publish(tmp_path, "math", task)
    assert (tmp_path / "math" / "checkpoints" / "a").read_text() == "j2"
    assert not _leftovers(tmp_path)


def test_a_missing_file_leaves_the_published_one(tmp_path: Path) -> None:
    good = committed(tmp_path, "j1", Stage.PREPARE, {"training_data.jsonl": "good"})
    publish(tmp_path, "math", good)
    bad = committed(tmp_path, "j2", Stage.PREPARE, {"training_data.jsonl": "bad"}, minutes=1)
    (tmp_path / bad.artifacts[0].path).unlink()
    with pytest.raises(NotFound):
        publish(tmp_path, "math", bad)
    assert (tmp_path / "math" / "training_data.jsonl").read_text() == "good"
    assert not _leftovers(tmp_path)


def test_a_missing_file_leaves_all_files_of_the_stage(tmp_path: Path) -> None:
    """A new GGUF beside an old Modelfile would be a model that no job made."""
    names = ("gguf/unsloth.Q4_K_M.gguf", "checkpoints/a", "Modelfile")
    good, bad = (
        committed(tmp_path, job, Stage.EXPORT, dict.fromkeys(names, job), minutes=minute)
        for minute, job in enumerate(("good", "bad"))
    )
    publish(tmp_path, "math", good)
    (tmp_path / bad.artifacts[-1].path).unlink()
    with pytest.raises(NotFound):
        publish(tmp_path, "math", bad)
    assert [(tmp_path / "math" / name).read_text() for name in names] == ["good"] * 3
    assert not _leftovers(tmp_path)


def test_a_folder_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_exchange", lambda *_: False)
    old, new = (
        committed(tmp_path, job, Stage.TRAIN, {"checkpoints/a": job}, minutes=minute)
        for minute, job in enumerate(("old", "new"))
    )
    publish(tmp_path, "math", old)
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self == tmp_path / "math" / ".publish.part" / "checkpoints":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path, "math", new)
    assert (tmp_path / "math" / "checkpoints" / "a").read_text() == "old"


def test_what_a_dead_publisher_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "math" / ".publish.part" / "checkpoints"
    left.mkdir(parents=True)
    (left / "half").write_text("h")
    publish(tmp_path, "math", committed(tmp_path, "j1", Stage.TRAIN, {"checkpoints/a": "1"}))
    assert [p.name for p in (tmp_path / "math" / "checkpoints").iterdir()] == ["a"]
    assert not left.parent.exists()


def test_parts_of_a_dead_publisher_are_cleared(tmp_path: Path) -> None:
    """Also those of files that this job does not write: each may hold gigabytes."""
    place = tmp_path / "math" / "gguf"
    place.mkdir(parents=True)
    for name in ("unsloth.Q4_K_M.gguf", "unsloth.Q8_0.gguf"):
        (place / f".{name}.publish.part").write_text("half")
    task = committed(tmp_path, "j1", Stage.EXPORT, {"gguf/unsloth.Q4_K_M.gguf": "g"})
    publish(tmp_path, "math", task)
    assert [p.name for p in place.iterdir()] == ["unsloth.Q4_K_M.gguf"]
    assert (place / "unsloth.Q4_K_M.gguf").read_text() == "g"


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the adapters."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_gguf_folder_on_another_disk_is_published_into(tmp_path: Path, other_disk: Path) -> None:
    names = ("Modelfile", "gguf/unsloth.Q4_K_M.gguf")
    old, new, bad = (
        committed(tmp_path, job, Stage.EXPORT, dict.fromkeys(names, job), minutes=minute)
        for minute, job in enumerate(("old", "new", "bad"))
    )
    (tmp_path / "math" / "gguf").symlink_to(other_disk)
    for task in (old, new):
        publish(tmp_path, "math", task)
    (tmp_path / bad.artifacts[-1].path).unlink()
    with pytest.raises(NotFound):
        publish(tmp_path, "math", bad)
    assert [(tmp_path / "math" / name).read_text() for name in names] == ["new", "new"]
    assert [p.name for p in other_disk.iterdir()] == ["unsloth.Q4_K_M.gguf"]
    assert not _leftovers(tmp_path)


def test_a_reader_that_does_not_let_go_keeps_no_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_PATIENCE", 0.1, raising=False)
    old, new = (
        committed(tmp_path, job, Stage.PREPARE, {"training_data.jsonl": job}, minutes=minute)
        for minute, job in enumerate(("old", "new"))
    )
    publish(tmp_path, "math", old)
    raised: list[OSError] = []

    def write() -> None:
        try:
            publish(tmp_path, "math", new)
        except OSError as error:
            raised.append(error)

    publisher = threading.Thread(target=write)
    with (tmp_path / "math" / PUBLISH_LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        publisher.start()
        publisher.join(10)
        assert not publisher.is_alive()
        assert "locked for 0.1 seconds" in str(raised)
        assert (tmp_path / "math" / "training_data.jsonl").read_text() == "old"
    assert publish(tmp_path, "math", new)


def test_a_reader_that_holds_the_lock_sees_the_files_of_one_job(tmp_path: Path) -> None:
    names = ("gguf/unsloth.Q4_K_M.gguf", "checkpoints/a", "Modelfile")
    tasks = [
        committed(tmp_path, f"j{i}", Stage.EXPORT, dict.fromkeys(names, f"j{i}"), minutes=i)
        for i in range(60)
    ]
    publish(tmp_path, "math", tasks[0])
    seen: list[set[str]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with (tmp_path / "math" / PUBLISH_LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                seen.append({(tmp_path / "math" / name).read_text() for name in names})
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    for task in tasks[1:]:
        publish(tmp_path, "math", task)
    done.set()
    reader.join()
    assert {len(jobs) for jobs in seen} == {1}
    assert len(set().union(*seen)) > 5, "the reader ran beside the publisher"


def test_a_reader_always_finds_a_whole_checkpoint(tmp_path: Path) -> None:
    tasks = [
        committed(
            tmp_path,
            f"j{i}",
            Stage.TRAIN,
            {f"checkpoints/{part}": str(i) for part in "abcdef"},
            minutes=i,
        )
        for i in range(40)
    ]
    publish(tmp_path, "math", tasks[0])
    place = tmp_path / "math" / "checkpoints"
    seen: list[tuple[str, ...]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            before = place.stat().st_ino
            names = tuple(sorted(os.listdir(place)))
            # a folder replaced while it was listed may have lost files; the one at the place has not
            if place.stat().st_ino == before:
                seen.append(names)

    reader = threading.Thread(target=read)
    reader.start()
    for task in tasks[1:]:
        publish(tmp_path, "math", task)
    done.set()
    reader.join()
    assert set(seen) == {tuple("abcdef")}


def _leftovers(adapters: Path) -> list[Path]:
    """What publishing made ready, or put aside, and did not clear."""
    found = [*(adapters / "math").rglob("*.part*"), *(adapters / "math").rglob("*.old")]
    return [path for path in found if "runs" not in path.parts]


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]
