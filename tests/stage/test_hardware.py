"""What a worker says it trains on."""

import os
from pathlib import Path

import pytest

from loco.stage import hardware


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program of that name on the path, which answers what is asked of it."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_cpu_has_cores_and_memory():
    found = hardware.of(("cpu",))
    assert found is not None
    assert (found.name, found.is_gpu) == ("cpu", False)
    assert found.cores == len(os.sched_getaffinity(0))
    assert 0.1 < found.free_gb <= found.memory_gb
    assert found.compute_capability is None


def test_a_gpu_is_the_one_the_worker_is_pinned_to(nvidia_smi):
    nvidia_smi(
        'test "$1" = "--id=GPU-abc" && echo "NVIDIA GeForce RTX 3070, 8192, 7780, 8.6" || exit 6'
    )
    found = hardware.of(("GPU-abc", "GPU-def"))
    assert found is not None
    assert found.name == "NVIDIA GeForce RTX 3070"
    assert found.memory_gb == pytest.approx(8.590, abs=0.001)
    assert found.free_gb == pytest.approx(8.158, abs=0.001)
    assert found.compute_capability == 8.6
    assert hardware.gpu("1") is None


@pytest.mark.parametrize(
    "script",
    ["exit 9", "echo 'No devices were found'", "echo 'NVIDIA X, [N/A], [N/A], 9.0'"],
)
def test_a_driver_that_does_not_answer_is_logged_and_not_fatal(nvidia_smi, caplog, script):
    nvidia_smi(script)
    assert hardware.of(("0",)) is None
    assert "does not describe GPU 0" in caplog.text


def test_no_driver_at_all_is_not_fatal(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.gpu("0") is None
