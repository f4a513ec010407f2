"""Locks a Linux process down before it runs what a model wrote. No root, no helper program.

Read by `code_child` in an interpreter that can import nothing of ours, so this file is the standard
library only. Three walls, none of which can be taken down again from inside:

- resource limits (setrlimit(2)): memory, processor time, files, processes, no core dump;
- Landlock (landlock(7)): of all files only the standard library and shared libraries can be read;
- a seccomp filter (seccomp(2)): an allow list of system calls. What is not on it does not exist:
  no sockets, processes, threads, signals to others, tracing, mounts, namespaces, io_uring, keys,
  and no opening of a file in order to write it, anywhere.

Where the kernel has no Landlock the filter allows no opening of files at all, and what answers
commonly import is imported before. Where the filter cannot be had nothing runs (`Missing`).
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38  # linux/prctl.h
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_OPEN_FILES = 64

#: Imported beforehand where files cannot be opened afterwards.
COMMON_MODULES = (
    "abc", "array", "ast", "base64", "binascii", "bisect", "calendar", "cmath", "collections",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum",
    "fractions", "functools", "graphlib", "hashlib", "heapq", "html", "inspect", "io",
    "itertools", "json", "math", "numbers", "operator", "pprint", "queue", "random", "re",
    "secrets", "statistics", "string", "struct", "textwrap", "time", "traceback", "types",
    "typing", "unicodedata", "urllib.parse", "uuid", "zlib",
)  # fmt: skip

# system calls an interpreter needs, by name: x86-64, aarch64 (asm/unistd_64.h, asm-generic/unistd.h)
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160),
    "getcwd": (79, 17), "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "getcpu": (309, 168), "getrandom": (318, 278),
    "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
_OPEN, _OPENAT = (2, None), (257, 56)
_FCNTL, _PRLIMIT, _IOCTL, _CLONE3 = (72, 25), (302, 261), (16, 29), (435, 435)
# the bits with which open() writes or creates: WRONLY, RDWR, CREAT, TRUNC, APPEND, TMPFILE
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; F_SETOWN would send signals to others
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # linux/audit.h
_X32 = 0x40000000  # x86-64 numbers from here on are another table of calls

# linux/bpf_common.h, linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]


class Missing(Exception):
    """What this machine lacks for running code safely."""


def lock(*, memory_mb: int, cpu_seconds: int, parent: int) -> None:
    """Locks this process down for good, and tries the walls.

    Args:
        memory_mb: address space it may have, the interpreter's own (some 20 MiB) included.
        cpu_seconds: processor time from now on.
        parent: process ID of who started it; it dies with that one.

    Raises:
        Missing: a wall cannot be had here; nothing must be run then.
    """
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        raise Missing(f"Linux on 64-bit x86 or ARM (this is {sys.platform}, {machine})")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Missing(f"prctl(PR_SET_NO_NEW_PRIVS) ({_last_error()})")
    files_readable = _restrict_files(libc, readable_paths())
    if not files_readable:
        for name in COMMON_MODULES:
            import_module(name)
    _limit(memory_mb, cpu_seconds)
    install(libc, program(files_readable=files_readable))
    _try_walls(libc)


def _limit(memory_mb: int, cpu_seconds: int) -> None:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_CPU: int(used) + cpu_seconds + 1,
        resource.RLIMIT_FSIZE: 0,  # of files; pipes are no files
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        # counted over all processes of the user, so only "no more" makes sense; root is exempt,
        # therefore the filter refuses them too
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, limit in limits.items():
        resource.setrlimit(name, (limit, limit))


def readable_paths() -> Iterator[str]:
    """What answers may read: the standard library without site-packages, and shared libraries."""
    for library in _libraries():
        for entry in os.scandir(library):
            if entry.name not in ("site-packages", "dist-packages"):
                yield entry.path
    base = os.path.join(sys.base_prefix, "lib")
    if os.path.isdir(base):
        yield from (entry.path for entry in os.scandir(base) if ".so" in entry.name)
    if (libc := _mapped("libc.")) is not None:
        yield os.path.dirname(libc)
    yield from ("/etc/ld.so.cache", "/usr/share/zoneinfo")


def _mapped(prefix: str) -> str | None:
    """Path of a library this process has loaded."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n")[line.find("/") :]
            if os.path.basename(path).startswith(prefix):
                return path
    return None


def _libraries() -> list[str]:
    """Folders of the standard library: all that `python -I -S` imports from."""
    return [path for path in sys.path if os.path.isdir(path)]


def _restrict_files(libc: ctypes.CDLL, paths: Iterable[str]) -> bool:
    """Whether Landlock now lets this process read `paths` only, and write nothing."""
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    # linux/landlock.h: rights of files by version; network from 4, scopes from 6
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    scopes = 3 if version >= 6 else 0
    attributes = struct.pack("=QQQ", (1 << rights) - 1, 3 if version >= 4 else 0, scopes)
    ruleset = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    read_file, read_dir = 1 << 2, 1 << 3
    listed = {*_libraries(), os.getcwd()}
    for path in (*paths, *listed):
        try:
            # 0o10000000 is O_PATH on both architectures
            handle = os.open(path, 0o10000000 | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        access = read_dir
        if path not in listed:
            access = read_file | read_dir if os.path.isdir(path) else read_file
        rule = struct.pack("=Qi", access, handle)
        done = libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
        os.close(handle)
        if done != 0:
            raise Missing(f"a Landlock rule for {path} ({_last_error()})")
    done = libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return bool(done == 0)


def program(*, files_readable: bool) -> list[Instruction]:
    """The filter: an allow list; all else fails with EPERM, as do calls of another architecture.

    Args:
        files_readable: whether files may be opened for reading.
    """
    architecture, column = _ARCHITECTURES[os.uname().machine]
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]

    def of(call: tuple[int | None, int | None], then: list[Instruction]) -> None:
        number = call[column]
        if number is not None:
            lines.extend([(_EQUAL, 0, len(then), number), *then])

    for call in _ALLOWED.values():
        of(call, [(_RETURN, 0, 0, _ALLOW)])
    if files_readable:
        of(_OPEN, _unless_bits(1, _WRITING))
        of(_OPENAT, _unless_bits(2, _WRITING))
    of(_FCNTL, _if_one_of(1, _FCNTL_COMMANDS))
    # reading a limit of one's own: process 0, no new limit (both halves of the pointer)
    of(_PRLIMIT, _if_zero(0, 0) + _if_zero(2, 0) + _if_zero(2, 4) + [(_RETURN, 0, 0, _ALLOW)])
    of(_IOCTL, [(_RETURN, 0, 0, _ERRNO | errno.ENOTTY)])
    of(_CLONE3, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    lines.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return lines


def _argument(index: int, half: int = 0) -> Instruction:
    return _LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + half


def _unless_bits(index: int, bits: int) -> list[Instruction]:
    return [
        _argument(index),
        (_ANY_BIT, 0, 1, bits),
        (_RETURN, 0, 0, _ERRNO | errno.EACCES),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _if_one_of(index: int, values: Iterable[int]) -> list[Instruction]:
    tests = [line for v in values for line in ((_EQUAL, 0, 1, v), (_RETURN, 0, 0, _ALLOW))]
    return [_argument(index), *tests, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def _if_zero(index: int, half: int) -> list[Instruction]:
    return [_argument(index, half), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]


def install(libc: ctypes.CDLL, lines: list[Instruction]) -> None:
    """Puts this process under a seccomp filter, for good (it needs no_new_privs or root).

    Raises:
        Missing: the kernel, or the policy of a container, refuses filters.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise Missing(f"a seccomp filter ({_last_error()})")


def _try_walls(libc: ctypes.CDLL) -> None:
    """Tries what must fail now: an emulated kernel may accept a filter and not apply it."""
    if libc.socket(1, 1, 0) >= 0 or libc.socket(2, 1, 0) >= 0:
        raise Missing("a seccomp filter that keeps sockets away (it was accepted, not applied)")
    child = libc.fork()
    if child == 0:
        os._exit(0)
    if child > 0:
        raise Missing("a seccomp filter that keeps processes away (it was accepted, not applied)")
    for path in (f"/proc/{os.getppid()}/environ", "/proc/self/environ", "/etc/passwd"):
        if libc.open(path.encode(), os.O_RDONLY) >= 0:
            raise Missing(f"protection of files ({path} could be read)")


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
