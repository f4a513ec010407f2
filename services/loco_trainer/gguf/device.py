"""Where export computes: on the GPU as far as its free memory goes, else on the CPU."""

from collections.abc import Callable

import torch

from loco_trainer.machine.memory import is_exhaustion

#: Less free memory than this is left to whoever has the rest of the GPU.
_LEAST_BYTES = 400 * 2**20
#: Merging holds the 16-bit weight, its float32 copy, the delta and what the converter makes of it.
_MERGE_BYTES_PER_NUMBER = 16
#: What kquants holds for each number at its peak: ten float32 arrays or so.
_QUANTIZE_BYTES_PER_NUMBER = 44
#: More numbers at once are not faster.
_MOST_NUMBERS = 2**26


class StreamDevice:
    """The device of one export."""

    def __init__(self, device: str, name: str, log: Callable[[str], None], budget: int) -> None:
        """`device`: cuda, cpu (ggml quantizes), or torch-cpu (the GPU's code, for tests)."""
        self.name = name
        self._device = device
        self._log = log
        self._budget = budget
        self._now = "cpu"

    @classmethod
    def choose(cls, wish: str, log: Callable[[str], None]) -> "StreamDevice":
        """The GPU, if there is one with room for at least small pieces; says which and why."""
        if wish == "torch-cpu":
            return cls("torch-cpu", "cpu", log, 2**30)
        if wish == "auto" and torch.cuda.is_available():
            try:
                free, _total = torch.cuda.mem_get_info()
                name: str = torch.cuda.get_device_name()
            except RuntimeError as error:  # a full GPU has no room for this process's context
                log(
                    "Quantizing on the CPU, because the GPU cannot be used "
                    f"({str(error).splitlines()[0]})."
                )
                return cls("cpu", "cpu", log, 0)
            if free >= _LEAST_BYTES:
                log(f"Quantizing on {name} ({free / 1e9:.1f} GB free).")
                return cls("cuda", name, log, free // 2)
            log(f"Quantizing on the CPU, because {name} has only {free / 1e9:.1f} GB free.")
            return cls("cpu", "cpu", log, 0)
        log("Quantizing on the CPU.")
        return cls("cpu", "cpu", log, 0)

    def fits(self, numbers: int) -> bool:
        """Whether a tensor of so many numbers is merged on the GPU."""
        return self._device == "cuda" and numbers * _MERGE_BYTES_PER_NUMBER <= self._budget

    def use(self, *, gpu: bool) -> None:
        """Where the next tensor is merged."""
        self._now = "cuda" if gpu else "cpu"

    def take(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the base where it is merged."""
        return weight.to(self._now)

    def move(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows to quantize, where torch quantizes them."""
        return rows.to("cuda") if self._device == "cuda" else rows

    def rows(self, width: int) -> int:
        """Rows torch quantizes at once; 0: ggml does it."""
        if self._device == "cpu":
            return 0
        numbers = min(_MOST_NUMBERS, self._budget // _QUANTIZE_BYTES_PER_NUMBER)
        return max(1, numbers // width)

    def ran_out(self, error: RuntimeError) -> bool:
        """Whether an error is the GPU's memory being full."""
        return self._device != "cpu" and is_exhaustion(error)

    def give_up(self) -> None:
        """Goes on without the GPU: somebody else has taken its memory."""
        self._log("The GPU has no memory left. Continuing on the CPU.")
        self._device, self.name = "cpu", f"cpu, started on {self.name}"
        torch.cuda.empty_cache()
