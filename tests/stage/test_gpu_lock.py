"""The GPU lock: one holder, the rest wait or stop."""

import io
import os
import threading
import time
from pathlib import Path

import pytest

from loco.stage.gpu_lock import device_id, gpu_lock, pin
from loco.stage.program import Emitter, Stopped


@pytest.mark.parametrize(
    ("visible", "device"),
    [
        ("0", "0"),
        ("1,0", "1"),
        (" 2 , 0", "2"),
        ("3,-1,0", "3"),
        ("", "cpu"),
        ("-1", "cpu"),
        ("GPU-1a", "GPU-1a"),
        ("GPU-9f,GPU-1a", "GPU-9f"),
        ("MIG-7,MIG-3", "MIG-7"),
    ],
)
def test_the_device_is_the_first_of_the_list(visible: str, device: str) -> None:
    assert device_id({"CUDA_VISIBLE_DEVICES": visible}) == device


@pytest.mark.parametrize("given", ["1,0,2", "GPU-9f,GPU-1a", "1,1"])
@pytest.mark.parametrize("from_settings", [True, False])
def test_a_trainer_is_pinned_to_the_first_and_says_what_stays_free(
    given: str, from_settings: bool
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "7" if from_settings else given}
    words = pin(given if from_settings else None, environment)
    first, *others = dict.fromkeys(given.split(","))
    assert environment["CUDA_VISIBLE_DEVICES"] == first
    if others:
        assert words is not None
        assert f"{', '.join(others)} stay" in words
        assert f"LOCO_GPU={others[0]}" in words
    else:
        assert words is None


def test_what_is_pinned_is_what_is_locked_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    said = io.StringIO()
    with gpu_lock(tmp_path, Emitter(said)) as device:
        assert device == os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert [file.name for file in tmp_path.iterdir()] == ["gpu-1.lock"]
    assert "0 stays free" in said.getvalue()


def test_pin_sets_what_torch_reads() -> None:
    environment: dict[str, str] = {}
    pin("2", environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": "2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    on_cpu = {"CUDA_VISIBLE_DEVICES": ""}
    pin(None, on_cpu)
    assert on_cpu == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_second_waits_until_the_first_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    said = io.StringIO()
    order: list[str] = []

    def second() -> None:
        with gpu_lock(tmp_path, Emitter(said)):
            order.append("second")

    with gpu_lock(tmp_path, Emitter(io.StringIO())) as device:
        thread = threading.Thread(target=second)
        thread.start()
        while thread.is_alive() and "in use" not in said.getvalue():
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert device == "3"
    assert order == ["first", "second"]
    assert "GPU 3 is in use by process" in said.getvalue()


def test_a_stop_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    waiting = Emitter(io.StringIO())
    waiting.request_stop()
    with (
        gpu_lock(tmp_path, Emitter(io.StringIO())),
        pytest.raises(Stopped),
        gpu_lock(tmp_path, waiting),
    ):
        pass
