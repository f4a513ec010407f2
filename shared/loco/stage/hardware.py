"""What this machine trains on, found without torch: its memory, its cores, its GPU."""

import logging
import os
from pathlib import Path

from loco.contracts.plans import Device
from loco.stage import nvml

_MEMINFO = Path("/proc/meminfo")

logger = logging.getLogger(__name__)


def of(device_id: str) -> Device | None:
    """What a worker pinned to this device trains on; None when its GPU does not say.

    Args:
        device_id: as `loco.stage.gpu_lock.device_id` gives it.
    """
    return cpu() if device_id == "cpu" else gpu(device_id)


def cpu() -> Device:
    """The CPU with its cores and RAM; free is what programs can get, caches given up."""
    total, free = _ram()
    return Device(name="cpu", memory_gb=total / 1e9, free_gb=free / 1e9, cores=_cores())


def gpu(device_id: str) -> Device | None:
    """A GPU as its driver sees it; None when it does not say (logged).

    Args:
        device_id: number or UUID, as in CUDA_VISIBLE_DEVICES.
    """
    try:
        (found,) = nvml.gpus(device_id)
    except nvml.DriverFault as error:
        logger.warning("cannot describe GPU %s: %s", device_id, error)
        return None
    if found.memory is None or found.free is None:
        logger.warning("cannot describe GPU %s: it does not say how much memory it has", device_id)
        return None
    return Device(
        name=found.name,
        memory_gb=found.memory / 1e9,
        free_gb=found.free / 1e9,
        compute_capability=found.capability and float("{}.{}".format(*found.capability)),
    )


def _cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ram() -> tuple[int, int]:
    """Bytes of RAM, and of those the bytes a program can get without swapping."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return total, int(line.split()[1]) * 1024
    return total, page * os.sysconf("SC_AVPHYS_PAGES")
