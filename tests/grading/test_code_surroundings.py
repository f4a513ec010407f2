"""The process around the code: workers, threads, and machines that lack a wall."""

import ctypes
import os
import platform
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from locked_code import grade, in_another_process

from loco.grading.verdict import Graded

# the process around it


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _wait(until: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_child_dies_with_the_worker_that_is_killed(tmp_path: Path) -> None:
    program = """
        import os, sys
        from loco.stage.deathsig import die_with_parent
        die_with_parent(os.getppid())
        from loco.grading import sandbox
        print(sandbox.compute("def f(): return 4", [{"args": [], "kwargs": {}}], entry="f").answers[0]["value"], flush=True)
        sandbox.compute("import time; print('loop')\\nwhile True: time.sleep(1)", [{}], seconds=10)
    """
    with in_another_process(program, TMPDIR=str(tmp_path)) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "4\n"  # grading works in such a worker
        _wait(lambda: _children(worker.pid))
        (child,) = _children(worker.pid)
        time.sleep(0.5)
        worker.kill()
        worker.wait()
        _wait(lambda: not _alive(child), 5)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_thread_grades_too() -> None:
    verdicts: list[Graded] = []
    thread = threading.Thread(target=lambda: verdicts.append(grade("def f(): return 4", 4)))
    thread.start()
    thread.join()
    assert verdicts[0].correct


# what the machine may lack


def _under_filter(
    number: tuple[int, int], answer: int, then: str, argument: int | None = None
) -> str:
    """Output of a program on a kernel without one system call (of that first argument)."""
    program = f"""
        import ctypes
        from loco.grading import lockdown
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(38, 1, 0, 0, 0)
        argument = {argument!r}
        lines = [(0x20, 0, 0, 0), (0x15, 0, 3, {number[platform.machine() != "x86_64"]}), (0x20, 0, 0, 16)]
        lines += [(0x15, 0, 1, argument) if argument is not None else (0x35, 0, 1, 0)]
        lines += [(0x06, 0, 0, 0x50000 | {answer}), (0x06, 0, 0, 0x7FFF0000)]
        lockdown.install(libc, lines)
        from loco.grading.code import grade_code
        from loco.contracts.code_tests import CodeTests
        from loco.contracts.errors import SandboxUnavailable
        def grade(code, expected):
            body = {{"entry": "f", "cases": [{{"expected": expected}}]}}
            return grade_code("```\\n" + code + "\\n```", CodeTests.model_validate(body))
    """
    with in_another_process(textwrap.dedent(program) + textwrap.dedent(then)) as process:
        assert process.stdout is not None
        return process.stdout.read()


LANDLOCK_CREATE_RULESET = (444, 444)


@pytest.mark.parametrize("answer", [1, 38])
def test_without_landlock_no_file_can_be_opened_at_all(answer: int) -> None:
    then = f"""
        code = '''
        import math, re, collections, heapq
        def f():
            seen = []
            for path in ("/etc/passwd", "/proc/self/environ", "/proc/{os.getpid()}/environ", re.__file__, "new"):
                for mode in "rw":
                    try: open(path, mode); seen.append(path)
                    except PermissionError: pass
            try: import sqlite3; seen.append("sqlite3")
            except (ImportError, PermissionError): pass
            return seen
        '''
        import textwrap
        print(grade(textwrap.dedent(code), []))
    """
    said = _under_filter(LANDLOCK_CREATE_RULESET, answer, then)
    assert said.startswith("Graded(correct=True"), said


@pytest.mark.parametrize(("call", "argument"), [((157, 167), 22), ((157, 167), 38)])
def test_without_seccomp_nothing_runs_and_what_lacks_is_named(
    call: tuple[int, int], argument: int, tmp_path: Path
) -> None:
    then = """
        try: print(grade("def f(): return 4", 4))
        except SandboxUnavailable as error: print(error.message, "|", error.hint)
    """
    said = _under_filter(call, 1, then, argument)
    lacking = {22: "a seccomp filter", 38: "prctl(PR_SET_NO_NEW_PRIVS)"}[argument]
    assert f"no code was graded. Missing: {lacking} (Operation not permitted)" in said
    assert "seccomp" in said.partition("|")[2]


def test_a_filter_that_is_accepted_but_not_applied_is_noticed() -> None:
    # an emulated kernel may say yes to everything: here prctl succeeds and does nothing
    then = """
        try: print(grade("def f(): return 4", 4))
        except SandboxUnavailable as error: print(error.message)
    """
    said = _under_filter((157, 167), 0, then, 22)
    assert "a seccomp filter that keeps sockets away (it was accepted, not applied)" in said


def test_our_own_exit_status_is_that_of_a_living_kernel() -> None:
    """The tests above mean something: without the walls these calls work here."""
    libc = ctypes.CDLL(None)
    assert libc.getppid() == os.getppid()
    with socket.socket(socket.AF_UNIX):
        pass
    child = os.posix_spawn("/bin/true", ["true"], {})
    assert os.waitpid(child, 0)[1] == 0
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
