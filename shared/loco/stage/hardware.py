"""What this machine trains on, found without torch: its memory, its cores, its GPU."""

import logging
import os
import subprocess
from pathlib import Path

from loco.contracts.plans import Device

_NVIDIA_SMI = "nvidia-smi"
_SECONDS = 10.0
_MIB = 1024**2
_MEMINFO = Path("/proc/meminfo")

logger = logging.getLogger(__name__)


def of(device_ids: tuple[str, ...]) -> Device | None:
    """What a worker pinned to these devices trains on; None when its GPU does not say.

    Args:
        device_ids: as `loco.stage.gpu_lock.device_ids` gives them.
    """
    return cpu() if device_ids == ("cpu",) else gpu(device_ids[0])


def cpu() -> Device:
    """The CPU with its cores and RAM; free is what programs can get, caches given up."""
    total, free = _ram()
    return Device(name="cpu", memory_gb=total / 1e9, free_gb=free / 1e9, cores=_cores())


def gpu(device_id: str) -> Device | None:
    """A GPU as nvidia-smi sees it; None when it does not say (logged).

    Args:
        device_id: number or UUID, as in CUDA_VISIBLE_DEVICES.
    """
    query = "name,memory.total,memory.free,compute_cap"
    command = [
        _NVIDIA_SMI,
        f"--id={device_id}",
        f"--query-gpu={query}",
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
        name, total, free, capability = answer.stdout.strip().rsplit(", ", 3)
        return Device(
            name=name,
            memory_gb=int(total) * _MIB / 1e9,
            free_gb=int(free) * _MIB / 1e9,
            compute_capability=float(capability),
        )
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("%s does not describe GPU %s: %s", _NVIDIA_SMI, device_id, error)
        return None


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
