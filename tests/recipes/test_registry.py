import multiprocessing
from pathlib import Path

import pytest
import yaml

from loco.contracts.errors import Conflict
from loco.recipes import registry


def version(job: str, *, promoted: bool = True) -> registry.Version:
    return registry.Version(
        job=job,
        model="locollm-math",
        candidate=f"locollm-math:{job}",
        promoted=promoted,
        base_model="smollm2-135m-instruct",
        base_ollama="smollm2:135m",
        quantization="Q4_K_M",
        digest=f"digest-{job}",
        blob=f"sha256:{job}",
        gguf=f"math/runs/{job}/export/a1/gguf/unsloth.Q4_K_M.gguf",
        size_bytes=100,
    )


def test_nothing_registered_is_an_empty_registry(tmp_path: Path) -> None:
    assert registry.read(tmp_path) == {}
    assert registry.current(tmp_path, "math") is None


def test_versions_count_up_and_the_newest_promoted_one_is_current(tmp_path: Path) -> None:
    registry.record(tmp_path, "math", version("a"))
    registry.record(tmp_path, "math", version("b"))
    registry.record(tmp_path, "math", version("c", promoted=False))
    history = registry.read(tmp_path)["math"]
    assert [(v.version, v.job, v.promoted) for v in history] == [
        (3, "c", False),
        (2, "b", True),
        (1, "a", False),
    ]
    document = yaml.safe_load((tmp_path / "registry.yaml").read_text())
    assert document["adapters"]["math"]["job"] == "b"
    assert document["adapters"]["math"]["version"] == 2
    current = registry.current(tmp_path, "math")
    assert current is not None
    assert current.job == "b"


def test_the_same_job_again_keeps_its_version(tmp_path: Path) -> None:
    registry.record(tmp_path, "math", version("a"))
    registry.record(tmp_path, "math", version("b"))
    again = registry.record(tmp_path, "math", version("a"))
    assert again.version == 1
    assert [v.job for v in registry.read(tmp_path)["math"]] == ["b", "a"]


def test_scores_join_the_version_of_their_job_only(tmp_path: Path) -> None:
    registry.record(tmp_path, "math", version("a"))
    registry.record(tmp_path, "math", version("b"))
    assert registry.record_scores(tmp_path, "math", "a", {"benchmark": {"candidate": 0.5}})
    assert not registry.record_scores(tmp_path, "math", "zzz", {"benchmark": {}})
    assert not registry.record_scores(tmp_path, "other", "a", {"benchmark": {}})
    by_job = {v.job: v.scores for v in registry.read(tmp_path)["math"]}
    assert by_job == {"a": {"benchmark": {"candidate": 0.5}}, "b": None}


def test_other_adapters_stay(tmp_path: Path) -> None:
    registry.record(tmp_path, "code", version("x"))
    registry.record(tmp_path, "math", version("a"))
    assert set(registry.read(tmp_path)) == {"code", "math"}


def _register(folder: Path, start: int) -> None:
    for number in range(start, start + 5):
        registry.record(folder, "math", version(f"job-{number}"))


def test_processes_writing_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_register, args=(tmp_path, 10 * n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    history = registry.read(tmp_path)["math"]
    assert sorted(v.version for v in history) == list(range(1, 16))
    assert sum(v.promoted for v in history) == 1


@pytest.mark.parametrize("text", ["adapters: [", "adapters: 3", "- a", "adapters: {math: 3}"])
def test_a_broken_file_is_named_and_not_written_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(Conflict, match=r"registry\.yaml"):
        registry.record(tmp_path, "math", version("a"))
    assert (tmp_path / "registry.yaml").read_text() == text
