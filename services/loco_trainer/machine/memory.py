"""Memory of the GPU or the machine: how much was used, and what to do when it is too little."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loco.contracts.errors import OutOfMemory

_EXHAUSTED = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


@contextmanager
def exhaustion_explained() -> Iterator[None]:
    """Turns running out of memory into an error that says what to change.

    Raises:
        OutOfMemory: the model is too large for the GPU's or the machine's memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_exhaustion(error):
            raise out_of_memory(str(error)) from error
        raise


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory ran out, or came of one that does.

    A CUDA graph that memory ended in the middle may complain itself, with the true reason behind.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the driver, cuBLAS and torch's CPU allocator have no class of their own for it
    if any(words in str(error) for words in _EXHAUSTED):
        return True
    return error.__context__ is not None and is_exhaustion(error.__context__)


def peak_gpu_gb() -> float:
    """Peak GPU memory torch reserved since the start or `release`, 10^9 bytes; 0 on a CPU."""
    return torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0


def give_back() -> None:
    """Gives back what is free but still held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def release() -> None:
    """Gives back what is free but still held, and has `peak_gpu_gb` count from now on."""
    give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def out_of_memory(words: str) -> OutOfMemory:
    """An error that says what to change.

    Args:
        words: what the allocator said.
    """
    # what torch says after that is about its own allocator
    words, _, _ = (words or "the machine has no more RAM").partition(" Including non-PyTorch")
    return OutOfMemory(
        f"Training ran out of memory: {words.splitlines()[0]}",
        param="train.max_length",
        hint="Lower train.max_length, set train.load_in_4bit on a GPU, leave train.micro_batch "
        "and train.gradient_checkpointing unset, close other programs on the GPU, or "
        "choose a smaller base model (`loco plan` shows what fits).",
    )
