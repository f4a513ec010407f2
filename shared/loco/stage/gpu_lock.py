"""One stage program per GPU: a lock file that its process holds and the kernel lets go.

A worker already runs one stage at a time; the lock also keeps out a second worker pinned to the
same GPU, a replay by hand, and a superseded attempt that has not noticed yet.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TextIO

from loco.stage.program import Emitter

_POLL_SECONDS = 0.2
_SAY_AGAIN_SECONDS = 30.0
_DRIVER = Path("/proc/driver/nvidia/version")


@contextmanager
def gpu_lock(locks_dir: Path, emit: Emitter) -> Iterator[str]:
    """Holds the lock of this process's GPU (of the CPU where there is none); yields its ID.

    Waits while another process holds it, with a log line now and then. From here on this process sees
    that GPU only: what is not locked must not be used.

    Args:
        locks_dir: folder of the lock files, `gpu-ID.lock` or `cpu.lock`.
        emit: told about waiting and about GPUs left free, and asked whether to stop.

    Raises:
        Stopped: a stop was asked for while waiting.
    """
    if words := pin(None):
        emit.log(words)
    device = device_id()
    locks_dir.mkdir(parents=True, exist_ok=True)
    with _lock_path(locks_dir, device).open("a+") as file:
        _wait(file, device, emit)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield device


def device_id(environment: Mapping[str, str] = os.environ) -> str:
    """ID of the GPU this process computes on, number or UUID; `cpu` where there is none.

    The first that CUDA_VISIBLE_DEVICES lists, as torch takes it.
    """
    return (*_visible(environment), "cpu")[0]


def pin(gpu: str | None, environment: MutableMapping[str, str] = os.environ) -> str | None:
    """Pins this process and its children to one GPU, the first of those given.

    Args:
        gpu: as CUDA_VISIBLE_DEVICES would list it; None: as found, and number 0 where nothing is.
        environment: what is changed.

    Returns:
        Where more were given: which stay free, and how to use them.
    """
    visible = _visible(environment) if gpu is None else _listed(gpu)
    if gpu is None and not visible:
        return None
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:1])
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the numbers nvidia-smi shows
    others = visible[1:]
    if not others:
        return None
    return (
        f"A trainer uses one GPU: of {', '.join(visible)} it takes {visible[0]}, and "
        f"{', '.join(others)} {'stays' if len(others) == 1 else 'stay'} free. Start a trainer for "
        f"each, with LOCO_GPU={others[0]} (docs/deploy.md)."
    )


def _visible(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs a process may see; unset CUDA_VISIBLE_DEVICES means the first."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ("0",) if _DRIVER.exists() else ()
    return _listed(visible)


def _listed(visible: str) -> tuple[str, ...]:
    """The IDs of a list in order; CUDA reads it up to the first that is none (an empty one, -1)."""
    ids = (device.strip() for device in visible.split(","))
    return tuple(dict.fromkeys(takewhile(lambda device: device not in ("", "-1"), ids)))


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
                emit.log(f"{name} is in use by process {holder}. Waiting for it.")
            emit.check_stop()
            time.sleep(_POLL_SECONDS)
        else:
            return
