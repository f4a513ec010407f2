"""One stage program per GPU: a lock file that its process holds and the kernel lets go.

A worker already runs one stage at a time; the lock also keeps out a second worker pinned to the
same GPU, a replay by hand, and a superseded attempt that has not noticed yet.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from loco.stage.program import Emitter

_POLL_SECONDS = 0.2
_SAY_AGAIN_SECONDS = 30.0
_DRIVER = Path("/proc/driver/nvidia/version")


@contextmanager
def gpu_lock(locks_dir: Path, emit: Emitter) -> Iterator[tuple[str, ...]]:
    """Holds the locks of this process's GPUs (of the CPU where there is none); yields their IDs.

    Waits while another process holds one, with a log line now and then.

    Args:
        locks_dir: folder of the lock files, `gpu-ID.lock` or `cpu.lock`.
        emit: told about waiting, and asked whether to stop.

    Raises:
        Stopped: a stop was asked for while waiting.
    """
    devices = device_ids()
    locks_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for device in devices:  # sorted, so that two processes never wait for each other
            file = held.enter_context(_lock_path(locks_dir, device).open("a+"))
            _wait(file, device, emit)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield devices


def device_ids(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """IDs of the GPUs this process is pinned to, sorted; `("cpu",)` where there is none.

    Unset CUDA_VISIBLE_DEVICES means the first GPU, as torch takes it.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ("0",) if _DRIVER.exists() else ("cpu",)
    devices = sorted({d.strip() for d in visible.split(",")} - {"", "-1"})
    return tuple(devices) or ("cpu",)


def pin(gpu: str | None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Pins this process and its children to one GPU.

    Args:
        gpu: its ID for CUDA_VISIBLE_DEVICES; None: as found, and the first one where nothing is.
        environment: what is changed.
    """
    devices = device_ids(environment) if gpu is None else (gpu,)
    if devices != ("cpu",):
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers nvidia-smi shows


def _lock_path(locks_dir: Path, device: str) -> Path:
    name = "cpu" if device == "cpu" else f"gpu-{re.sub(r'[^A-Za-z0-9-]', '_', device)}"
    return locks_dir / f"{name}.lock"


def _wait(file: TextIO, device: str, emit: Emitter) -> None:
    said = float("-inf")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() - said >= _SAY_AGAIN_SECONDS:
                said = time.monotonic()
                file.seek(0)
                holder = file.read().strip() or "another process"
                name = "The CPU" if device == "cpu" else f"GPU {device}"
                emit.log(f"{name} is in use by process {holder}; waiting for it.")
            emit.check_stop()
            time.sleep(_POLL_SECONDS)
        else:
            return
