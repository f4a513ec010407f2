"""What the doctor makes of what it sees."""

import os
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from loco import doctor
from loco.doctor import Level, cuda_version, disk, judge_gpu, package_faults, requirements

# nvidia-smi of driver 580 on an H200
HEADING = """Sun Nov 22 15:17:05 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.159.04             Driver Version: 580.159.04     CUDA Version: 13.0     |
"""
H200 = "NVIDIA H200, 580.159.04, 9.0, 143771, 143156"


def test_a_large_gpu_is_fine():
    found = judge_gpu("gpu 0", H200, cuda_version(HEADING))
    assert found.level is Level.OK
    assert found.message == (
        "NVIDIA H200, driver 580.159.04, CUDA 13.0, compute capability 9.0, "
        "150.75 GB memory (150.11 GB free)"
    )


@pytest.mark.parametrize(
    ("line", "cuda", "fix"),
    [
        ("Tesla P40, 535.1, 6.1, 23040, 23000", (13, 0), "Compute capability 7.5"),
        ("GTX 1650, 550.1, 7.5, 4096, 4000", (13, 0), "needs 6 GB"),
        ("RTX 3090, 510.1, 8.6, 24576, 24000", (12, 4), "driver 580"),
    ],
)
def test_a_gpu_that_is_too_little_is_a_warning_with_its_fix(line, cuda, fix):
    found = judge_gpu("gpu 0", line, cuda)
    assert found.level is Level.WARNING
    assert fix in str(found.fix)


def test_an_8_gb_card_and_unknown_words_are_fine():
    assert judge_gpu("gpu 0", "RTX 3070, 550, 8.6, 8192, 8000", (13, 0)).level is Level.OK
    assert judge_gpu("gpu 0", "GB10, 580, 12.1, [N/A], [N/A]", None).level is Level.OK


def test_a_machine_without_a_gpu_is_told_what_runs_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor.gpu()
    assert found.level is Level.WARNING
    assert "tiny" in found.message


@pytest.fixture
def fake_smi(tmp_path, monkeypatch):
    """Puts a program named nvidia-smi on PATH."""

    def put(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


def test_every_gpu_is_looked_at(fake_smi):
    fake_smi(
        f'case "$1" in --query*) echo "{H200}"; echo "GTX 1650, 580, 7.5, 4096, 4000";;'
        ' *) echo "CUDA Version: 13.0";; esac'
    )
    assert [(f.name, f.level) for f in doctor.gpu()] == [
        ("gpu 0", Level.OK),
        ("gpu 1", Level.WARNING),
    ]


def test_a_card_that_is_in_use_or_slow_is_a_second_finding(fake_smi):
    fake_smi(
        'case "$1" in --query*) echo "RTX 3070, 580, 8.6, 8192, 2000"; echo "T4, 580, 7.5, 15360, 15000";;'
        ' *) echo "CUDA Version: 13.0";; esac'
    )
    found = {f.name: f for f in doctor.gpu()}
    assert [f.level for f in found.values()] == [Level.OK, Level.WARNING, Level.OK, Level.WARNING]
    assert list(found) == ["gpu 0", "gpu 0, memory", "gpu 1", "gpu 1, speed"]
    assert "2.10 GB" in found["gpu 0, memory"].message
    assert "ollama stop" in str(found["gpu 0, memory"].fix)
    assert "8.0 (Ampere)" in str(found["gpu 1, speed"].fix)


def test_a_driver_that_does_not_answer_is_named(fake_smi):
    fake_smi("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18")
    (found,) = doctor.gpu()
    assert "version mismatch" in found.message
    assert "driver" in str(found.fix)


def test_room_on_disk(tmp_path, monkeypatch):
    for free, level in ((100e9, Level.OK), (10e9, Level.WARNING), (1e9, Level.PROBLEM)):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, usage=usage: usage)
        found = disk("data", tmp_path / "not" / "made" / "yet")
        assert found.level is level
        assert (found.fix is None) == (level is Level.OK)
        if found.fix:
            assert "LOCO_DATA_DIR" in found.fix


def test_a_folder_that_cannot_be_written_to(tmp_path):
    found = disk("adapters", Path("/proc/1/fdinfo"))
    assert found.level is Level.PROBLEM
    assert "LOCO_ADAPTERS_DIR" in str(found.fix)


def test_wrong_and_missing_packages_are_named():
    wanted = {n: Requirement(f"{n}{v}") for n, v in (("torch", "==2.13.0"), ("trl", ""), ("x", ""))}
    found = {"torch": {"version": "2.12.0"}, "trl": {"error": "ImportError: no"}}
    assert list(package_faults(wanted, found)) == [
        "torch is 2.12.0, this release wants ==2.13.0.",
        "trl does not import: ImportError: no",
        "x does not import: not looked at",
    ]
    local = {"torch": {"version": "2.13.0+cpu"}}
    assert list(package_faults({"torch": wanted["torch"]}, local)) == []


def test_requirements_come_from_the_release_itself():
    assert "torch" in requirements(("train",))
    assert "torch" not in requirements(("api", "worker"))
    assert "unsloth" in requirements(("train", "gpu"))
