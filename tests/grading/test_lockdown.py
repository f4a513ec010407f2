"""The filter's program itself, on both architectures: read by a small interpreter of BPF."""

import json
import os
import struct
import subprocess
import sys
from types import SimpleNamespace

import pytest

from loco.grading import lockdown

ALLOW, KILL = 0x7FFF0000, 0x80000000
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
#: By architecture: read, openat, fcntl, prlimit64, ioctl, clone3, socket, clone, kill, execve
NUMBERS = {
    "x86_64": (0, 257, 72, 302, 16, 435, 41, 56, 62, 59),
    "aarch64": (63, 56, 25, 261, 29, 435, 198, 220, 129, 221),
}


def answer(machine: str, lines: list[lockdown.Instruction], number: int, *arguments: int) -> int:
    data = struct.pack("<IIQ6Q", number, AUDIT[machine], 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    at = loaded = 0
    while True:
        code, yes, no, operand = lines[at]
        at += 1
        if code == 0x20:
            loaded = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x06:
            return operand
        else:
            holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: loaded & operand}[code]
            at += yes if holds else no


def errno_of(verdict: int) -> int:
    assert verdict >> 16 == 5
    return verdict & 0xFFFF


@pytest.mark.parametrize("machine", AUDIT)
def test_the_filter_says_the_same_on_both_architectures(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    lines = lockdown.program(files_readable=True)
    read, openat, fcntl, prlimit, ioctl, clone3, *ways_out = NUMBERS[machine]
    assert answer(machine, lines, read) == ALLOW
    assert answer(machine, lines, openat, 3, 1, os.O_CLOEXEC) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE):
        assert errno_of(answer(machine, lines, openat, 3, 1, flags)) == 13
    assert answer(machine, lines, fcntl, 1, 3) == ALLOW
    for command in (4, 8, 10, 1024, 1026):  # SETFL, SETOWN, SETSIG, SETLEASE, NOTIFY
        assert errno_of(answer(machine, lines, fcntl, 1, command)) == 1
    assert answer(machine, lines, prlimit, 0, 9, 0, 4096) == ALLOW
    for process, new in ((1, 0), (0, 4096), (0, 1 << 40)):
        assert errno_of(answer(machine, lines, prlimit, process, 9, new, 0)) == 1
    assert errno_of(answer(machine, lines, ioctl, 0)) == 25
    assert errno_of(answer(machine, lines, clone3)) == 38
    for number in (*ways_out, 444, 1000, 0x40000000):
        assert errno_of(answer(machine, lines, number)) == 1


@pytest.mark.parametrize("machine", AUDIT)
def test_only_the_listed_calls_exist(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    for readable, least, most in ((True, 50, 72), (False, 48, 70)):
        lines = lockdown.program(files_readable=readable)
        allowed = [n for n in range(600) if answer(machine, lines, n) == ALLOW]
        assert least <= len(allowed) <= most
        assert (NUMBERS[machine][1] in allowed) == readable


@pytest.mark.parametrize("machine", AUDIT)
def test_calls_of_another_architecture_kill(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
    lines = lockdown.program(files_readable=True)
    other = next(name for name in AUDIT if name != machine)
    assert answer(other, lines, 0) == KILL


def test_what_may_be_read_holds_no_installed_package() -> None:
    program = f"""
import json
names = {{"__name__": "lockdown"}}
exec(open({lockdown.__file__!r}).read(), names)
print(json.dumps(list(names["readable_paths"]())))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, check=True
    )
    paths: list[str] = json.loads(done.stdout)
    assert not [p for p in paths if "site-packages" in p or "dist-packages" in p]
    assert any(p.endswith("/json") for p in paths)
    assert not [p for p in paths if p in ("/", "/etc", "/usr", "/lib", "/proc", "/home", "/tmp")]
