"""What this machine can do at most: bf16 matrix products, copies, file reads and writes.

    .venv-train/bin/python tests/benchmarks/gpu_ceilings.py FOLDER

Prints one JSON object. Times are those of CUDA events, medians on random data; FOLDER is on the disk
that is measured. Without a GPU the matrix product is the CPU's and there are no copies.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SIDE = 8192
_CHUNK = 2**26
#: Seconds of matrix products before their rate counts: a card that starts cool is faster at first.
_WARM_SECONDS = 2.0


def main() -> None:
    """Measures and prints."""
    measured: dict[str, Any] = files(Path(sys.argv[1]))
    measured |= card() if torch.cuda.is_available() else processor()
    print(json.dumps(measured))


def card() -> dict[str, Any]:
    """Matrix products in operations a second, copies in bytes a second (read plus written).

    The rate of matrix products that counts is the one the card holds, as training lasts, too.
    """
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    at_first = gpu_seconds(lambda: torch.mm(a, b, out=product), 50)
    held = gpu_seconds(lambda: torch.mm(a, b, out=product), 200, warm=int(_WARM_SECONDS / at_first))
    source = torch.empty(2**32, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = gpu_seconds(lambda: target.copy_(source), 20)
    pinned = torch.empty(2**30, dtype=torch.uint8, pin_memory=True).random_()
    uploaded = gpu_seconds(lambda: target[: 2**30].copy_(pinned, non_blocking=True), 10)
    return {
        "matmul_per_second": 2 * _SIDE**3 / held,
        "matmul_at_first_per_second": 2 * _SIDE**3 / at_first,
        "copy_bytes_per_second": 2 * 2**32 / copied,
        "upload_bytes_per_second": 2**30 / uploaded,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
    }


def gpu_seconds(work: Callable[[], Any], repeats: int, warm: int = 3) -> float:
    """Median seconds of a piece of GPU work, after some that do not count."""
    for _ in range(warm):
        work()
    spans = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        spans.append(start.elapsed_time(end) / 1e3)
    return statistics.median(spans)


def processor() -> dict[str, Any]:
    """A small matrix product on the CPU."""
    a, b = (torch.randn(512, 512, dtype=torch.bfloat16) for _ in range(2))
    spans = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(a, b)
        spans.append(time.perf_counter() - started)
    return {"matmul_per_second": 2 * 512**3 / statistics.median(spans)}


def files(folder: Path, size: int = 2**30) -> dict[str, float]:
    """Bytes a second written until they are on the disk, and read again from the page cache."""
    path = folder / "ceiling.bin"
    block = os.urandom(_CHUNK)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // _CHUNK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    written = time.perf_counter() - started
    buffer = bytearray(_CHUNK)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    read = time.perf_counter() - started
    path.unlink()
    return {
        "file_write_bytes_per_second": size / written,
        "file_read_bytes_per_second": size / read,
    }


if __name__ == "__main__":
    main()
