"""Memory of the GPU or the machine: how much was used, and what to do when it is too little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loco.errors import OutOfMemory


@contextmanager
def exhaustion_explained() -> Iterator[None]:
    """Turns running out of memory into an error that says what to change.

    Raises:
        OutOfMemory: the model or its batch is too large for the GPU's or the machine's memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(error) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch's CPU allocator has no class of its own
            raise _out_of_memory(error) from error
        raise


def peak_gpu_gb() -> float:
    """Peak GPU memory torch reserved so far, in 10^9 bytes; 0 on a CPU."""
    return torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0


def _out_of_memory(error: BaseException) -> OutOfMemory:
    # what torch says after that is about its own allocator
    words, _, _ = (str(error) or "the machine has no more RAM").partition(" Including non-PyTorch")
    return OutOfMemory(
        f"Training ran out of memory: {words.splitlines()[0]}",
        param="train.batch_size",
        hint="Halve train.batch_size and double train.gradient_accumulation (the result is the "
        "same), lower train.max_length, or on a GPU set train.load_in_4bit.",
    )
