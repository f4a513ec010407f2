"""The GPU lock: one holder, the rest wait or stop."""

import io
import threading
import time
from pathlib import Path

import pytest

from loco.stage.gpu_lock import device_ids, gpu_lock, pin
from loco.stage.program import Emitter, Stopped


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("0", ("0",)), ("1,0", ("0", "1")), ("", ("cpu",)), ("-1", ("cpu",)), ("GPU-1a", ("GPU-1a",))],
)
def test_devices_of_the_environment(visible: str, devices: tuple[str, ...]) -> None:
    assert device_ids({"CUDA_VISIBLE_DEVICES": visible}) == devices


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

    with gpu_lock(tmp_path, Emitter(io.StringIO())) as devices:
        thread = threading.Thread(target=second)
        thread.start()
        while thread.is_alive() and "in use" not in said.getvalue():
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert devices == ("3",)
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
