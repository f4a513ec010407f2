"""`loco up`: everything on this machine, in this terminal, until Ctrl-C.

The first Ctrl-C (or SIGTERM) drains: a running stage leaves a checkpoint and goes on at the next
`loco up`. The second one kills.
"""

import signal
import sys
import time
from types import FrameType

from loco.box.stack import Stack
from loco.contracts.disk import is_disk_full
from loco.contracts.printable import one_line
from loco.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SLOW_START_SECONDS = 60.0


def run_up(settings: Settings) -> int:
    """Runs the stack until a signal; returns the exit code.

    Raises:
        LocoError: something is missing or in the way.
    """
    stack = Stack(settings, say=say)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]  # started under nohup

    def on_signal(number: int, _frame: FrameType | None) -> None:
        again = stack.stopping
        stack.request_stop(now=again)
        text = "killing everything" if again else "stopping; running training saves a checkpoint"
        say("up", f"{signal.Signals(number).name}: {text}")

    for number in before:
        signal.signal(number, on_signal)
    try:
        stack.start()
        if not stack.wait_ready(_SLOW_START_SECONDS) and not stack.stopping:
            say("up", f"not ready yet; see {stack.server}/readyz and {settings.data_dir / 'logs'}")
        while stack.running:
            time.sleep(0.1)
    finally:
        stack.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    if stack.error is not None:
        raise stack.error
    return 0


def say(name: str, text: str) -> None:
    """One event, one line; a child's last words stay within it."""
    clock = time.strftime("%H:%M:%S")
    try:
        sys.stdout.write(f"{clock}  {name:<9}  {one_line(text)}\n")
        sys.stdout.flush()
    except OSError as error:
        if not is_disk_full(error):  # kept, and written with the next line when there is room
            raise
