"""A file that never ends, named as data.

Before: `prepare.benchmark` and a source's path were hashed before anything was checked: a sparse file of
4 TB kept the worker reading for hours, deaf to cancel, and a pipe kept it waiting for ever.
"""

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest

from loco.contracts.artifacts import FrozenFile
from loco.contracts.errors import DataError
from loco.contracts.requests import JobRequest
from loco.contracts.sources import JsonlSource
from loco.contracts.specs import Inputs, PrepareSpec
from loco.queue import submission
from loco.recipes.data_files import data_file
from loco.recipes.resolve import resolve
from loco.running import attempt
from loco.settings import Settings
from loco.stage.program import Emitter, Stopped
from loco_worker.sources.sources import open_source

_FIELDS = ["prepare.source.path", "eval.sets.benchmark.source.path"]


def request(field: str, path: str) -> JobRequest:
    source = {"kind": "jsonl", "path": path}
    if field.startswith("prepare"):
        return JobRequest(adapter="math", profile="tiny", prepare={"source": source})
    return JobRequest(
        adapter="math", profile="tiny", eval={"sets": {"benchmark": {"source": source}}}
    )


@pytest.fixture
def here(adapters_dir: Path, tmp_path: Path) -> Settings:
    """Settings of folders where an endless file and a pipe lie; nothing of Redis is touched."""
    with (adapters_dir / "math" / "endless.jsonl").open("wb") as file:
        os.truncate(file.fileno(), 4 * 2**40)
    os.mkfifo(adapters_dir / "math" / "pipe.jsonl")
    return Settings(adapters_dir=adapters_dir, data_dir=tmp_path / "data")


@pytest.mark.parametrize("path", ["endless.jsonl", "pipe.jsonl", "/dev/zero"])
@pytest.mark.parametrize("field", _FIELDS)
def test_it_is_refused_at_submit_by_its_field(field: str, path: str, here: Settings) -> None:
    spec = resolve(here.adapters_dir, request(field, path))
    begun = time.process_time()
    with pytest.raises(DataError) as caught:
        submission._frozen_files(here, spec, {})
    assert caught.value.param == field
    assert caught.value.hint
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("path", ["endless.jsonl", "pipe.jsonl", "/dev/zero"])
def test_a_stage_and_its_worker_do_not_read_it_either(path: str, here: Settings) -> None:
    """Of a job of an earlier release, whose inputs were not frozen, or of a forged record."""
    folder = here.adapters_dir / "math"
    inputs: dict[str, Any] = dict.fromkeys(("adapter_dir", "models_dir", "locks_dir"), folder)
    given = Inputs(job_id="j", adapter="math", ollama_host="http://127.0.0.1:9", **inputs)
    begun = time.process_time()
    for field in _FIELDS:
        with pytest.raises(DataError):
            data_file(path, given, field)
        assert attempt._content(given, field, path) == [None]
    assert time.process_time() - begun < 10


def test_files_of_a_usual_size_are_taken(here: Settings) -> None:
    spec = resolve(here.adapters_dir, request(_FIELDS[1], "eval_dataset.jsonl"))
    assert isinstance(spec.prepare, PrepareSpec)
    assert "eval_dataset.jsonl" in submission._frozen_files(here, spec, {})


@pytest.mark.parametrize("frozen", [True, False])
def test_a_large_file_is_let_go_of_when_the_job_is_cancelled(
    here: Settings, *, frozen: bool
) -> None:
    """A stop was looked at when a file had been hashed and read whole: minutes for the largest."""
    folder = here.adapters_dir / "math"
    large = folder / "large.jsonl"
    large.write_bytes(b'{"question": "2 + 2?", "answer": "4"}\n' * 400_000)  # 15 MB
    held = FrozenFile(path=str(large), sha256="0" * 64, size=large.stat().st_size)
    given: dict[str, Any] = dict.fromkeys(("adapter_dir", "models_dir", "locks_dir"), folder)
    inputs = Inputs(
        job_id="j",
        adapter="math",
        ollama_host="http://127.0.0.1:9",
        frozen={"large.jsonl": held} if frozen else {},
        **given,
    )
    emit = Emitter(io.StringIO())
    emit.request_stop()
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        emit.check_stop()

    source = JsonlSource(kind="jsonl", path="large.jsonl")
    with pytest.raises(Stopped):
        open_source(source, inputs, 0, between=look)
    assert looks == [1]
