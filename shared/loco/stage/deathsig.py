"""Processes that die with their parent: on Linux the kernel sees to it, elsewhere a watchdog does."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int, *, code: int = 1) -> None:
    """Has the kernel kill this process when the one that started it dies.

    Args:
        parent: its process ID; this process ends at once with `code` when that is gone already.
        code: exit code then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(code)  # it died before we asked


def dying_with_us(how: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """A `preexec_fn` that ties a child to the thread that starts it; none where the kernel cannot.

    Two system calls and nothing loaded: all that may run between fork and exec.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, how)
        if os.getppid() != parent:
            os._exit(1)  # we died before it asked

    return tie
