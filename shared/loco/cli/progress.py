"""A reading of a running stage's progress, as text."""

from loco.contracts.figures import duration
from loco.contracts.program_events import Progress


def in_words(progress: Progress) -> str:
    """A progress reading in one line, the time left first."""
    parts = []
    if progress.eta_seconds:
        parts.append(f"{duration(progress.eta_seconds)} left")
    if progress.total_steps:
        parts.append(f"step {progress.step or 0}/{progress.total_steps}")
    elif progress.percent is not None:
        parts.append(f"{progress.percent:.0f} %")
    if progress.message:
        parts.append(progress.message)
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        parts.append(f"validation {progress.validation_loss:.3f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.gpu_memory_gb:
        parts.append(f"{progress.gpu_memory_gb:.1f} GB GPU")
    return ", ".join(parts)


def bar(percent: float | None, width: int = 20) -> str:
    """A bar of the work done; empty when it is not known."""
    if percent is None:
        return ""
    percent = min(max(percent, 0), 100)
    done = round(percent / 100 * width)
    return ("━" * done + "╌" * (width - done) + f" {percent:3.0f} %").lstrip()
