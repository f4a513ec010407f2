from pathlib import Path

import pytest
import yaml

from loco.contracts.errors import Conflict
from loco.contracts.evaluation import GateResult, Verdict
from loco.contracts.versions import Version, VersionEvent
from loco.recipes import registry


def version(number: int, *, promoted: bool = False) -> Version:
    return Version(
        version=number,
        job=f"job-{number}",
        model="locollm-math",
        candidate=f"locollm-math:job-{number}",
        promoted=promoted,
        gate=GateResult(verdict=Verdict.BETTER, policy="not_worse", reasons=("Better.",)),
        events=(VersionEvent(at="2026-11-27T12:00:00Z", action="registered", by="register"),),
        base_model="smollm2-135m-instruct",
        base_ollama="smollm2:135m",
        quantization="Q4_K_M",
        digest=f"digest-{number}",
        blob=f"sha256:{number}",
        gguf=f"math/runs/job-{number}/export/a1/gguf/unsloth.Q4_K_M.gguf",
        size_bytes=100,
    )


def test_nothing_registered_is_an_empty_registry(tmp_path: Path) -> None:
    assert registry.read(tmp_path) == {}
    assert registry.current(tmp_path, "math") is None


def test_the_promoted_version_is_shown_and_the_newest_comes_first(tmp_path: Path) -> None:
    versions = [version(1), version(3), version(2, promoted=True)]
    registry.write(tmp_path, {"math": versions, "code": [version(1)]})
    assert registry.read(tmp_path)["math"] == [versions[1], versions[2], versions[0]]
    document = yaml.safe_load((tmp_path / "registry.yaml").read_text())
    assert document["adapters"]["math"]["version"] == 2
    assert document["adapters"]["code"]["version"] == 1, "the newest where nothing is promoted"
    assert registry.current(tmp_path, "math") == versions[2]
    assert "Edits are lost" in (tmp_path / "registry.yaml").read_text()


def test_fields_of_another_release_are_left_out(tmp_path: Path) -> None:
    written = version(1)
    registry.write(tmp_path, {"math": [written]})
    path = tmp_path / "registry.yaml"
    document = yaml.safe_load(path.read_text())
    entry = document["adapters"]["math"]["history"][0]
    entry["mood"] = "good"
    entry["gate"]["mood"] = "good"
    path.write_text(yaml.dump(document))
    assert registry.read(tmp_path)["math"] == [written]


@pytest.mark.parametrize("text", ["adapters: [", "adapters: 3", "- a", "adapters: {math: 3}"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.yaml").write_text(text)
    with pytest.raises(Conflict, match=r"registry\.yaml"):
        registry.read(tmp_path)
