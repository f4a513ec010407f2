"""Has a locked-down child compute values with code nobody has read, within limits of time and memory.

The child (`code_child`) locks itself down (`lockdown`) and says so before it is sent anything to run.
Safe in several threads at once: no `preexec_fn`, no global state. The child dies with the thread
that started it.
"""

import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loco.contracts.errors import SandboxUnavailable

_PROGRAM = Path(__file__).with_name("code_child.py")
#: How long an interpreter may take to start on a busy machine.
_START_SECONDS = 30.0
#: All that the code may send back.
_LONGEST_OUTPUT_BYTES = 1 << 20
_ENDING_SECONDS = 0.5
_HINT = (
    "Grading code needs Linux with seccomp, ideally also Landlock (kernel 5.13 or later, and a "
    "container policy that allows both). Or choose another grader."
)


class Outcome(NamedTuple):
    """What a child sent back."""

    #: JSON of the values by step, or the error; steps without an answer are absent.
    answers: dict[int, Mapping[str, Any]]
    #: Why steps are missing, in words that fit behind "the code"; None when none is.
    ended: str | None


def compute(
    code: str,
    steps: Sequence[Mapping[str, Any]],
    *,
    entry: str | None = None,
    seconds: float = 5,
    memory_mb: int = 256,
) -> Outcome:
    """Runs code in a locked-down child and gives the values of the steps.

    Args:
        code: Python source, of anybody.
        steps: what to compute with it, as `code_child` takes it.
        entry: function that steps with `args` call.
        seconds: time for the code and all steps, from when the child is ready.
        memory_mb: address space of the child, MiB.

    Raises:
        SandboxUnavailable: this machine has no way to keep the code in; names what is missing.
    """
    if sys.platform != "linux":
        raise _unavailable(f"Linux (this is {sys.platform})")
    job = json.dumps({"code": code, "entry": entry, "steps": list(steps)}).encode()
    folder = tempfile.mkdtemp(prefix="loco-code-")
    try:
        try:
            process = _start(folder, memory_mb, math.ceil(seconds))
        except OSError as error:
            raise _unavailable(f"an interpreter that starts: {error}") from error
        try:
            return _exchange(process, job, len(steps), seconds)
        finally:
            _end(process)
    finally:
        remove(folder)


def require_sandbox() -> None:
    """Tries whether code can be graded here.

    Raises:
        SandboxUnavailable: it cannot; names what is missing.
    """
    compute("", [])


def _start(folder: str, memory_mb: int, cpu_seconds: int) -> subprocess.Popen[bytes]:
    # -I: no environment, no user site, no current folder; -S: no site-packages; -B: writes nothing
    flags = ("-I", "-S", "-E", "-B", "-X", "utf8")
    arguments = (str(memory_mb), str(cpu_seconds), str(os.getpid()))
    return subprocess.Popen(
        [sys.executable, *flags, str(_PROGRAM), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # of a start that fails; the code's own goes nowhere
        cwd=folder,
        env={},
        start_new_session=True,
        bufsize=0,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the ID is still its own
    except ProcessLookupError:
        process.kill()  # it has not come to lead its group yet, or has ended
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.wait()


def remove(folder: str) -> None:
    """Deletes a child's folder; never through a link (TemporaryDirectory did before Python 3.12.1)."""
    shutil.rmtree(folder, ignore_errors=True)


def _exchange(process: subprocess.Popen[bytes], job: bytes, steps: int, seconds: float) -> Outcome:
    """Waits for `ready`, sends the job and collects a line a step, all before a deadline."""
    assert process.stdin is not None
    assert process.stdout is not None
    reading, writing = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(writing, False)
    received, lines, rest, ready = bytearray(), 0, memoryview(job), False
    deadline = time.monotonic() + _START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while not ready or lines < steps:
            if (left := deadline - time.monotonic()) <= 0:
                if not ready:
                    raise _unavailable(f"an interpreter that starts within {_START_SECONDS:.0f} s")
                return _outcome(received, f"took longer than {seconds:g} s")
            for key, _ in selector.select(left):
                if key.fd == writing:
                    rest = _sent(writing, rest)
                    if not rest:
                        selector.unregister(writing)
                        process.stdin.close()
                    continue
                if not (data := os.read(reading, 1 << 16)):
                    if not ready:
                        raise _unavailable(_start_failure(process, received))
                    return _outcome(received, _how_it_ended(process))
                received += data
                lines += data.count(b"\n")
                if len(received) > _LONGEST_OUTPUT_BYTES:
                    return _outcome(b"", "returned more than 1 MiB")
                if not ready and b"\n" in received:
                    first, _, received = received.partition(b"\n")
                    lines -= 1
                    if first != b"ready":
                        raise _unavailable(first.decode(errors="replace").removeprefix("missing "))
                    ready, deadline = True, time.monotonic() + seconds
                    selector.register(writing, selectors.EVENT_WRITE)
    return _outcome(received, None)


def _sent(writing: int, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(writing, rest[: 1 << 16]) :]
    except BrokenPipeError:
        return rest[:0]  # it has ended; reading says how


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        return "closed the channel of its results"
    if code == -signal.SIGKILL:
        return "used up its processor time or memory"
    if code < 0:
        return f"crashed ({signal.Signals(-code).name})"
    return "ended the interpreter"


def _start_failure(process: subprocess.Popen[bytes], said: bytearray) -> str:
    last = said.decode(errors="replace").strip().splitlines()[-1:]
    return "an interpreter that starts: " + (last[0] if last else _how_it_ended(process))


def _outcome(received: bytes | bytearray, ended: str | None) -> Outcome:
    """The lines as answers: each must be the next step's (or -1, of code that does not run)."""
    answers: dict[int, Mapping[str, Any]] = {}
    for line in received.split(b"\n"):
        try:
            answer = json.loads(line)
            step = answer["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            break  # not a line of ours, or cut off
        if not isinstance(step, int) or (step != -1 and step != len(answers)):
            break
        answers[step] = answer
        if step == -1:
            break
    return Outcome(answers, ended)


def _unavailable(what: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"This machine cannot run code safely, so no code was graded. Missing: {what}.",
        hint=_HINT,
    )
