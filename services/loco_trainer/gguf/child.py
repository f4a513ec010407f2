"""Writes base + adapter as a quantized GGUF in one pass; no 16-bit file is written on the way.

    PYTHONPATH=.venv-train/converter python -m loco_trainer.gguf.child JOB.json

A process of its own, because llama.cpp's converter brings a newer `gguf` module than transformers
needs. The converter's model class says names, metadata, tokenizer and how tensors are rearranged;
its tensors stay lazy, and each is read, merged, quantized and written when its turn comes.
Standard output carries one JSON object a line; `loco_trainer.gguf.parent.write` reads them, and its `Job` is JOB.json.
"""

import errno
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from loco.contracts.errors import DiskFull, ExportFailed, LocoError
from loco_trainer.bases.plain import refuse_code
from loco_trainer.gguf import ggml, kquants, lora
from loco_trainer.gguf.device import StreamDevice
from loco_trainer.gguf.layout import Header, Planned, converter_model, plan
from loco_trainer.gguf.parent import Job
from loco_trainer.machine.imports import hide
from loco_trainer.machine.memory import is_exhaustion
from loco_trainer.machine.ram import peak_ram_bytes
from loco_trainer.machine.threads import usable_cpus
from loco_trainer.merge.lora import Adapter
from loco_trainer.merge.stored import Stored, index

#: Read ahead of the tensor in work, and queued behind it for the quantizing threads, in bytes.
_AHEAD_BYTES = 2**27
#: A thread's share of work: large enough to hide the call, small enough for an even end.
_SLICE_NUMBERS = 2**20
_REPORT_SECONDS = 0.1
#: Figures of a run that writes the adapter alone.
_NOTHING_WHOLE = {
    "device": "cpu",
    "merged": 0,
    "tensors": 0,
    "read_seconds": 0.0,
    "quantize_seconds": 0.0,
    "write_seconds": 0.0,
}


def main(path: str) -> int:
    """Runs one job and returns the exit code."""
    hide("torchao", "sklearn", "bitsandbytes", "peft", "accelerate")
    refuse_code()
    job = Job(**json.loads(Path(path).read_text()))
    with os.fdopen(os.dup(1), "w") as parent:
        os.dup2(2, 1)  # whatever a library prints goes to the log

        def say(**words: Any) -> None:
            parent.write(json.dumps(words) + "\n")
            parent.flush()

        try:
            say(result=run(job, say))
        except LocoError as error:
            disk = isinstance(error, DiskFull)
            say(error={"message": error.message, "hint": error.hint, "disk": disk})
            return 1
    return 0


def run(job: Job, say: Callable[..., None]) -> dict[str, Any]:
    """Plans and writes the GGUF; returns the figures of the result."""
    try:
        return _run(job, say)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"The GGUF could not be written: {error.strerror}.",
            hint="Free disk space, e.g. delete old folders in adapters/*/runs/.",
        ) from error


def _run(job: Job, say: Callable[..., None]) -> dict[str, Any]:
    started = time.monotonic()
    base = index(Path(job.folder))
    adapter = Adapter(Path(job.adapter) if job.adapter else None)
    adapter.check(base, Path(job.folder))
    for file in {stored.file for stored in base.values()}:
        if sys.platform == "linux":  # the disk may start reading while we plan
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    device = StreamDevice.choose(job.device, log=lambda line: say(log=line))
    written = _adapter(job, base, adapter, device, say) if job.lora else {}
    if not job.whole or (written.get("not_carried") and not job.merge):
        return {**_NOTHING_WHOLE, "peak_ram_bytes": peak_ram_bytes(), **written}
    header = plan(
        Path(job.folder),
        Path(job.target),
        name=job.name,
        outtype=job.outtype,
        quantization=job.quantization,
        load=_Loader(base, adapter if job.merge else Adapter(None), device),
    )
    say(log=f"Planned {len(header.tensors)} tensors in {time.monotonic() - started:.1f} s.")
    stream = _Stream(header, device, say)
    begun = time.monotonic()
    with Path(job.target).open("r+b", buffering=0) as out, torch.inference_mode():
        stream.write(out.fileno())
    return {
        "device": device.name,
        "merged": len(adapter) if job.merge else 0,
        "tensors": len(header.tensors),
        "read_seconds": round(stream.read_seconds, 3),
        "quantize_seconds": round(stream.quantize_seconds, 3),
        "write_seconds": round(time.monotonic() - begun, 3),
        "peak_ram_bytes": peak_ram_bytes(),
        **written,
    }


def _adapter(
    job: Job,
    base: dict[str, Stored],
    adapter: Adapter,
    device: StreamDevice,
    say: Callable[..., None],
) -> dict[str, Any]:
    """Writes the adapter as a GGUF of its own; says why where that cannot be."""
    load = _Loader(base, adapter, device)
    model = converter_model(
        Path(job.folder), Path(job.lora), job.name, job.outtype, load
    )  # nothing of it is read
    try:
        with torch.inference_mode():
            seconds = lora.write(model, adapter, Path(job.lora), name=job.name)
    except lora.NotCarried as error:
        return {"not_carried": str(error)}
    say(log=f"Wrote {len(adapter)} adapted layers in {seconds:.1f} s.")
    return {"lora_seconds": seconds}


class _Loader:
    """Hands the converter's lazy tensors their values when they are asked for."""

    def __init__(self, base: dict[str, Stored], adapter: Adapter, device: StreamDevice) -> None:
        self._by_place = {(s.file.name, s.offset): s for s in base.values()}
        self._adapter = adapter
        self._device = device
        self.ready: dict[str, torch.Tensor] = {}

    def stored(self, file: str, offset: int) -> Stored:
        """The tensor that begins there."""
        return self._by_place[file, offset]

    def __call__(self, stored: Stored) -> torch.Tensor:
        """The merged tensor, on the GPU where it fits."""
        weight = self.ready[stored.name] if stored.name in self.ready else stored.read()
        return self._adapter.merged(stored.name, self._device.take(weight))


class _Stream:
    """The pass over all tensors, in the order of the file."""

    def __init__(self, header: Header, device: StreamDevice, say: Callable[..., None]) -> None:
        self._header = header
        self._device = device
        self._say = say
        self._queue: deque[tuple[int, Future[None]]] = deque()
        self._queued = 0
        self._written = 0
        self._lock = threading.Lock()
        self._said = 0.0
        self.read_seconds = 0.0
        self.quantize_seconds = 0.0

    def write(self, target: int) -> None:
        """Writes every tensor at its place in the open file.

        Raises:
            ExportFailed: a merged tensor has no numbers.
            OSError: the disk is full.
        """
        workers = max(1, usable_cpus())
        with ThreadPoolExecutor(min(4, workers)) as readers, ThreadPoolExecutor(workers) as pool:
            try:
                for tensor, ready in self._ahead(readers):
                    self._header.load.ready = ready
                    self._one(tensor, target, pool)
                    del ready
                    self._header.load.ready = {}
                self._settle(0)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                readers.shutdown(cancel_futures=True)
                raise
        self._report(last=True)

    def _ahead(
        self, readers: ThreadPoolExecutor
    ) -> Iterator[tuple[Planned, dict[str, torch.Tensor]]]:
        """The tensors with the base weights they are made of, read by other threads meanwhile."""
        waiting: deque[tuple[Planned, dict[str, Future[torch.Tensor]]]] = deque()
        held = 0
        for tensor in self._header.tensors:
            size = sum(stored.size for stored in tensor.sources)
            while waiting and held + size > _AHEAD_BYTES:
                held -= sum(stored.size for stored in waiting[0][0].sources)
                yield self._arrived(*waiting.popleft())
            reads = {stored.name: readers.submit(stored.read) for stored in tensor.sources}
            waiting.append((tensor, reads))
            held += size
        while waiting:
            yield self._arrived(*waiting.popleft())

    def _arrived(
        self, tensor: Planned, reads: dict[str, Future[torch.Tensor]]
    ) -> tuple[Planned, dict[str, torch.Tensor]]:
        started = time.monotonic()
        ready = {name: read.result() for name, read in reads.items()}
        self.read_seconds += time.monotonic() - started
        return tensor, ready

    def _one(self, tensor: Planned, target: int, pool: ThreadPoolExecutor) -> None:
        while True:
            on_gpu = self._device.fits(tensor.elements) and tensor.any_device
            try:
                self._device.use(gpu=on_gpu)
                started = time.monotonic()
                value = tensor.value()
                # the rounding to the 16-bit type that the converter's own file would have had
                value = value.to(_TYPES[tensor.source]).reshape(-1, tensor.width)
                self.read_seconds += time.monotonic() - started
                self._encode(tensor, value, target, pool)
            except RuntimeError as error:
                if not self._device.ran_out(error):
                    raise
                self._device.give_up()  # and the same tensor again, on the CPU
            else:
                return

    def _encode(
        self, tensor: Planned, value: torch.Tensor, target: int, pool: ThreadPoolExecutor
    ) -> None:
        started = time.monotonic()
        if tensor.type == tensor.source:
            # the file is the 16-bit bytes as they are
            plain = value.cpu().contiguous().view(torch.uint8)
            self._later(plain.numel(), pool.submit(self._put, target, tensor.offset, plain))
        elif tensor.type in kquants.TYPES and (rows := self._device.rows(tensor.width)):
            for first in range(0, len(value), rows):
                part = self._device.move(value[first : first + rows])
                encoded = kquants.quantize(part, tensor.type).cpu()
                place = tensor.offset + first * encoded.shape[1]
                self._later(encoded.numel(), pool.submit(self._put, target, place, encoded))
        else:
            value = value.cpu().contiguous()
            rows = max(1, _SLICE_NUMBERS // tensor.width)
            size = ggml.row_bytes(tensor.type, tensor.width)
            for first in range(0, len(value), rows):
                part = value[first : first + rows]
                place = tensor.offset + first * size
                task = pool.submit(self._quantize, part, tensor.type, target, place)
                self._later(part.nbytes, task)
        self.quantize_seconds += time.monotonic() - started

    def _quantize(self, part: torch.Tensor, tensor_type: str, target: int, place: int) -> None:
        self._put(target, place, ggml.quantize(part, tensor_type))

    def _put(self, target: int, place: int, encoded: torch.Tensor) -> None:
        data = memoryview(encoded.numpy()).cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(target, data[done : done + 2**30], place + done)
        with self._lock:
            self._written += len(data)

    def _later(self, size: int, task: Future[None]) -> None:
        """Queues a task; waits for older ones while too many bytes are held."""
        self._queue.append((size, task))
        self._queued += size
        self._settle(_AHEAD_BYTES)

    def _settle(self, most: int) -> None:
        while self._queue and (self._queued > most or self._queue[0][1].done()):
            size, task = self._queue.popleft()
            try:
                task.result()
            except (RuntimeError, MemoryError) as error:
                # of an earlier tensor, on the CPU: not to be taken for the GPU's want in `_one`
                if not is_exhaustion(error):
                    raise
                raise ExportFailed(
                    "The machine has no RAM left for quantizing.",
                    hint="Close other programs to free memory (`loco plan` shows what export "
                    "needs).",
                ) from error
            self._queued -= size
        self._report()

    def _report(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._said >= _REPORT_SECONDS:
            self._said = now
            self._say(done=self._written, total=self._header.data_bytes)


_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
