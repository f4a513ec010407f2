"""NVIDIA GPUs as their driver describes them (NVML): what the worker plans with and the doctor judges.

    python shared/loco/stage/nvml.py [ID]

A driver in trouble can hang in any call, and then even a thread would keep its process from ending.
So this file runs as a child with a deadline, which prints one JSON array.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import pynvml

#: A driver without persistence mode takes some seconds to wake its GPUs.
_SECONDS = 30.0
#: To be gone after it was killed; a process that hangs in the kernel is left to it.
_KILL_SECONDS = 1.0
_NO_DRIVER = 3
_NOT_TOLD = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_NO_PERMISSION,  # the whole of a card in parts, from a container with some
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
)


class DriverFault(Exception):
    """The NVIDIA driver fails."""


class NoDriver(DriverFault):
    """No NVIDIA driver is installed."""


class DriverHangs(DriverFault):
    """The NVIDIA driver does not answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG part of one; None is what it does not say."""

    name: str
    #: UUID, `GPU-…` or `MIG-…`.
    uuid: str
    #: Version of the driver, `580.159.04`.
    driver: str
    #: Newest CUDA the driver runs.
    cuda: tuple[int, int] | None
    #: Compute capability.
    capability: tuple[int, int] | None
    #: Bytes, in all and free.
    memory: int | None
    free: int | None


def gpus(device_id: str | None = None, *, seconds: float = _SECONDS) -> list[Gpu]:
    """The GPUs of this machine in the order of their numbers, at least one.

    Args:
        device_id: number or UUID (its beginning will do) of the only one asked for; None: all.
        seconds: to wait for the driver.

    Raises:
        NoDriver: none is installed.
        DriverHangs: no answer in time.
        DriverFault: the driver says that it fails, or has no such GPU.
    """
    # by path and -P: neither the package nor what lies beside this file is imported
    command = [sys.executable, "-P", __file__, *([device_id] if device_id else [])]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, error = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _leave(child)
        raise DriverHangs(f"The NVIDIA driver gives no answer in {seconds:g} seconds") from None
    if child.returncode == _NO_DRIVER:
        raise NoDriver("No NVIDIA driver is installed")
    if child.returncode:
        words = (error.strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
        raise DriverFault(f"The NVIDIA driver fails: {words}")
    return [_gpu(**fields) for fields in json.loads(out)]


def _leave(child: subprocess.Popen[str]) -> None:
    """Kills a child that hangs; one that hangs in the kernel stays there."""
    child.kill()
    with suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=_KILL_SECONDS)


def _gpu(cuda: list[int] | None, capability: list[int] | None, **others: Any) -> Gpu:
    """A GPU from the child's JSON, which has no tuples."""
    return Gpu(cuda=_pair(cuda), capability=_pair(capability), **others)


def _pair(numbers: Sequence[int] | None) -> tuple[int, int] | None:
    return (numbers[0], numbers[1]) if numbers else None


# In the child


def _main(device_id: str | None) -> int:
    try:
        pynvml.nvmlInit()
        handles = [_handle(device_id)] if device_id else list(_all())
        found = [asdict(_described(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return _NO_DRIVER
        print(error, file=sys.stderr)  # noqa: T201 (its only way to speak)
        return 1
    if not found:
        print("it sees no GPU", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(found))  # noqa: T201
    return 0


def _all() -> Iterator[Any]:
    return map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))


def _handle(device_id: str) -> Any:
    """The handle of a GPU by number, UUID or the beginning of one, or of a MIG part by its UUID."""
    if device_id.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device_id))
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(device_id)  # first: it touches no card that is lost
    except pynvml.NVMLError:
        for handle in _all():
            if pynvml.nvmlDeviceGetUUID(handle).startswith(device_id):
                return handle
        raise


def _described(handle: Any) -> Gpu:
    cuda = _if_told(pynvml.nvmlSystemGetCudaDriverVersion)
    capability = _if_told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    if capability is None and (card := _if_told(_card_of, handle)):
        capability = _if_told(pynvml.nvmlDeviceGetCudaComputeCapability, card)
    memory = _if_told(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        driver=pynvml.nvmlSystemGetDriverVersion(),
        cuda=cuda and (cuda // 1000, cuda % 1000 // 10),
        capability=_pair(capability),
        memory=memory and int(memory.total),
        free=memory and int(memory.free),
    )


def _card_of(part: Any) -> Any:
    """The card that a MIG part belongs to."""
    return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part)


def _if_told(ask: Callable[..., Any], *arguments: Any) -> Any:
    """An answer; None where this GPU does not give it (memory of its own, where it has none)."""
    try:
        return ask(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _NOT_TOLD:
            return None
        raise


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1] if sys.argv[1:] else None))
