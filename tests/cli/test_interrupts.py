"""Ctrl-C at the worst moment, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import signal, time, weakref
from loco.cli.interrupts import interrupts_kept

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Referenced:
    pass

def callback(_):
    signal.raise_signal(signal.SIGINT)

try:
    with interrupts_kept():
        {moment}
        print("ignored", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""
MOMENTS = {
    "finalizer": "Finalized()",
    "callback": "it = Referenced(); seen = weakref.ref(it, callback); del it",
}


def said_by(program: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    return done.stdout, done.stderr


def test_an_interrupt_inside_a_finalizer_or_a_callback_comes_again() -> None:
    for name, moment in MOMENTS.items():
        out, err = said_by(PROGRAM.format(moment=moment))
        assert (out, err) == ("ignored\ninterrupted\n", ""), name


def test_what_else_python_has_to_ignore_is_printed_as_ever() -> None:
    moment = (
        "Finalized.__del__ = lambda self: 1 / 0; Finalized(); signal.raise_signal(signal.SIGINT)"
    )
    out, err = said_by(PROGRAM.format(moment=moment))
    assert out == "interrupted\n"
    assert "ZeroDivisionError" in err
