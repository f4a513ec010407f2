"""What a worker says it trains on."""

import os
import time

import pytest
from fake_nvml import DRIVER_NOT_LOADED, LIBRARY_MISMATCH, NO_PERMISSION, Card

from loco.stage import hardware, nvml


def test_a_cpu_has_cores_and_memory():
    found = hardware.of("cpu")
    assert found is not None
    assert (found.name, found.is_gpu) == ("cpu", False)
    assert found.cores == len(os.sched_getaffinity(0))
    assert 0.1 < found.free_gb <= found.memory_gb
    assert found.compute_capability is None


@pytest.mark.parametrize("device_id", ["1", "GPU-abc", "GPU-a"])
def test_a_gpu_is_the_one_the_worker_is_pinned_to(driver, device_id):
    card = Card("NVIDIA GeForce RTX 3070", (8, 6), (8192, 7780), uuid="GPU-abc")
    driver(Card("NVIDIA H200", uuid="GPU-def"), card)
    found = hardware.of(device_id)
    assert found is not None
    assert found.name == "NVIDIA GeForce RTX 3070"
    assert found.memory_gb == pytest.approx(8.590, abs=0.001)
    assert found.free_gb == pytest.approx(8.158, abs=0.001)
    assert found.compute_capability == 8.6


@pytest.mark.parametrize("device_id", ["2", "GPU-b", "MIG-2"])
def test_a_gpu_that_is_not_there_is_logged(driver, caplog, device_id):
    driver(Card("NVIDIA H200"), Card("NVIDIA H200", uuid="GPU-01"))
    assert hardware.of(device_id) is None
    assert f"cannot describe GPU {device_id}" in caplog.text


def test_a_lost_card_does_not_keep_the_others_from_being_found(driver):
    driver(Card("NVIDIA H200", lost=True), Card("NVIDIA A100", (8, 0), uuid="GPU-01"))
    found = hardware.of("GPU-01")
    assert found is not None
    assert found.name == "NVIDIA A100"


def test_memory_that_must_not_be_asked_for_is_unknown(driver):
    driver(Card("A100 in parts", memory=None, refusal=NO_PERMISSION), Card("A100", uuid="GPU-01"))
    whole, other = nvml.gpus()
    assert (whole.memory, whole.free) == (None, None)
    assert other.memory is not None


def test_a_part_of_a_gpu_has_its_own_memory_and_the_cards_capability(driver):
    part = Card("NVIDIA H200 MIG 1g.18gb", None, (16_384, 16_000), uuid="MIG-1")
    driver(Card("NVIDIA H200", memory=None), part=part)
    found = hardware.of("MIG-1")
    assert found is not None
    assert (found.name, found.compute_capability) == (part.name, 9.0)
    assert found.memory_gb == pytest.approx(17.18, abs=0.01)


@pytest.mark.parametrize(
    "machine",
    [
        {"fails": LIBRARY_MISMATCH},
        {"fails": DRIVER_NOT_LOADED},
        {"cards": ()},
        {"cards": (Card("GB10", memory=None),)},
    ],
)
def test_a_driver_that_does_not_answer_is_logged_and_not_fatal(driver, caplog, machine):
    driver(*machine.get("cards", (Card("NVIDIA H200"),)), fails=machine.get("fails", 0))
    assert hardware.of("0") is None
    assert "cannot describe GPU 0" in caplog.text


def test_a_driver_that_hangs_is_left_in_time(driver):
    driver(Card("NVIDIA H200"), hangs=True)
    started = time.monotonic()
    with pytest.raises(nvml.DriverHangs, match=r"no answer in 0.5 seconds"):
        nvml.gpus(seconds=0.5)
    assert time.monotonic() - started < 10


def test_no_driver_at_all_is_not_fatal(no_driver):
    assert hardware.gpu("0") is None
