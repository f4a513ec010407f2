"""Ctrl-C that is not lost, for the commands that wait for hours."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN_SECONDS = 0.05


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Has an interrupt that Python had to ignore come again a moment later.

    SIGINT raises KeyboardInterrupt wherever the main thread is. Inside a finalizer or the callback of a
    weak reference nothing can be raised, so Python prints it and goes on as if nobody had asked.
    https://docs.python.org/3/library/signal.html#note-on-signal-handlers-and-exceptions
    """
    usual = sys.unraisablehook
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            usual(ignored)
            return
        # to the main thread, whose system call it has to end, and once the finalizer is behind it
        again = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual
