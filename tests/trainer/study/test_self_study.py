"""How the study of own answers ends before its time, and what it says; nothing is trained or served."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.train

STUDY = Path(__file__).parents[2] / "benchmarks" / "learning"
sys.path.append(str(STUDY))

import quantized  # noqa: E402
import self_study  # noqa: E402
from lab import Lab  # noqa: E402
from schedule import Driver  # noqa: E402

from programs import Budget  # noqa: E402


def options(tmp_path, *more):
    return self_study._parser().parse_args(["run", "--out", str(tmp_path), *more])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_files_part_too(number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    driver, files = Budget(None), Budget(30)
    try:
        self_study.stopped_by_signals(driver, files)
        os.kill(os.getpid(), number)
        assert (driver.seconds_left, files.seconds_left) == (0, 0)
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_processes_that_answer_end_with_the_study():
    sleeping = [sys.executable, "-c", "import time; time.sleep(120)"]
    children = [subprocess.Popen(sleeping) for _ in range(2)]
    budget, started = Budget(30), time.monotonic()
    stopping = threading.Timer(0.5, budget.over.set)
    stopping.start()
    assert quantized._ended(children, budget) == [-signal.SIGKILL] * 2
    assert time.monotonic() - started < 10
    stopping.join()


def test_processes_that_are_through_have_their_own_codes():
    children = [
        subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (0, 3)
    ]
    assert quantized._ended(children, Budget(None)) == [0, 3]


def test_no_export_is_begun_when_the_study_has_ended(tmp_path, capsys):
    budget = Budget(30)
    budget.over.set()
    asked = options(tmp_path, "--base", str(tmp_path))
    lab = Lab(self_study._options(asked), budget)
    quantized.run(lab, Driver(lab, [], choose_after=0, strong=None), 4, 1, 1)
    assert "gguf base: export: left out" in capsys.readouterr().out
    assert not (tmp_path / "export").exists()


def test_half_a_line_is_no_answer(tmp_path):
    whole = '{"id": "test-1", "correct": true, "ended": true, "tokens": 3, "text": "4"}\n'
    (tmp_path / "base.0.jsonl").write_text(whole + whole[:20])
    assert quantized._answered(tmp_path, "base") == 1


def test_a_missing_converter_is_said_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    assert self_study._lacking_for_gguf() is None  # here it is there
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    asked = options(tmp_path, "--gguf-problems", "4")
    assert self_study._quantizing(asked, None, Budget(None)) is None
    said = capsys.readouterr().out
    assert f"the converter in {tmp_path / 'converter'}, which is missing" in said
    assert self_study._quantizing(options(tmp_path), None, Budget(None)) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", [False, True])
def test_status_says_that_nothing_was_packed(tmp_path, keep):
    out, packed = tmp_path / "out", tmp_path / "packed"
    (out / "results").mkdir(parents=True)
    more = ["--keep", str(packed)] if keep else []
    command = [sys.executable, str(STUDY / "self_study.py"), "status", "--out", str(out), *more]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("nothing was packed" in said) is not keep
    assert (packed / "study.tar.gz").is_file() is keep
