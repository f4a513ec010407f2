"""What code can try in order to get out of its child: each way has a wall."""

import os
import platform
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from locked_code import in_another_process, outcome_of

from loco.grading import sandbox

#: System calls by number on x86-64 and aarch64, that nothing but a way out would use here.
CALLS = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "sendto": (44, 206), "sendmsg": (46, 211), "accept": (43, 202), "clone": (56, 220),
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "mount": (165, 40),
    "fsopen": (430, 430), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "keyctl": (250, 219),
    "add_key": (248, 217), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "memfd_create": (319, 279), "openat2": (437, 437),
    "open_by_handle_at": (304, 265), "symlinkat": (266, 36), "linkat": (265, 37),
    "mkdirat": (258, 34), "mknodat": (259, 33), "unlinkat": (263, 35), "renameat2": (316, 276),
    "truncate": (76, 45), "fchmodat": (268, 53), "fchownat": (260, 54), "utimensat": (280, 88),
    "setxattr": (188, 5), "setsid": (112, 157), "setpgid": (109, 154), "setuid": (105, 146),
    "prctl": (157, 167), "seccomp": (317, 277), "setrlimit": (160, 164), "timer_create": (222, 107),
    "shmget": (29, 194), "mq_open": (240, 180), "inotify_init1": (294, 26), "reboot": (169, 142),
    "init_module": (175, 105), "kexec_load": (246, 104), "swapon": (167, 224), "quotactl": (179, 60),
}  # fmt: skip


# processes


@pytest.mark.parametrize(
    "body",
    [
        "import os\nwhile True: os.fork()",
        "import os\nos.forkpty()",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import subprocess\nsubprocess.run(['/bin/true'])",
        "import os\nif os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(60)",
        "import multiprocessing as m\np = m.get_context('fork').Process(target=print)\np.start()",
    ],
)
def test_no_process_can_be_started(body: str) -> None:
    assert outcome_of(body) == "PermissionError"


def test_a_shell_command_does_nothing(tmp_path: Path) -> None:
    assert outcome_of(f"import os\nreturn os.system('touch {tmp_path}/made')") != 0
    assert not list(tmp_path.iterdir())


def test_no_thread_can_be_started() -> None:
    body = "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()"
    assert outcome_of(body) == "RuntimeError"


@pytest.mark.parametrize(
    "body",
    [
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.kill(-1, 9)",
        "import os\nos.killpg(os.getppid(), 9)",
        "import signal\nsignal.pidfd_send_signal(3, 9)",
        "import os, fcntl\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
        "import os, fcntl\nfcntl.fcntl(1, fcntl.F_SETSIG, 9)",
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
def test_other_processes_and_limits_are_out_of_reach(body: str) -> None:
    # setrlimit is refused by the filter as PermissionError or by Python as ValueError
    assert outcome_of(body) in ("PermissionError", "ValueError")


# network


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_no_connection_reaches_a_tcp_server(family: str) -> None:
    host = "127.0.0.1" if family == "AF_INET" else "::1"
    with socket.socket(getattr(socket, family)) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 loopback here")
        server.listen()
        server.settimeout(0.2)
        port = server.getsockname()[1]
        with socket.create_connection((host, port)):  # it can be reached from outside the sandbox
            server.accept()[0].close()
        body = f"import socket\nsocket.create_connection(('{host}', {port}))"
        assert outcome_of(body) == "PermissionError"
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_datagram_and_no_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        for made in ("AF_UNIX", "AF_INET, socket.SOCK_DGRAM", "AF_NETLINK, 3", "AF_PACKET, 3"):
            assert outcome_of(f"import socket\nsocket.socket(socket.{made})") == "PermissionError"
    assert outcome_of("import socket\nsocket.socketpair()") == "PermissionError"


def test_no_name_is_looked_up() -> None:
    assert outcome_of("import socket\nsocket.getaddrinfo('example.org', 80)") == "gaierror"
    assert outcome_of("import socket\nsocket.gethostbyname('localhost')") == "gaierror"


# raw system calls


def test_raw_system_calls_are_refused() -> None:
    numbers = {name: call[platform.machine() != "x86_64"] for name, call in CALLS.items()}
    body = f"""
        import ctypes
        libc, done = ctypes.CDLL(None, use_errno=True), []
        for name, number in {numbers}.items():
            ctypes.set_errno(0)
            answer = libc.syscall(number, *[ctypes.c_long(0)] * 6)
            if (answer, ctypes.get_errno()) != (-1, 1):
                done.append(name)
        return [number, done]
    """
    last = list(numbers.values())[-1]
    assert outcome_of(textwrap.dedent(body)) == {"list": [last, {"list": []}]}


def test_the_newer_clone_says_that_it_does_not_exist() -> None:
    body = "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nl.syscall(435, None, 88)\nreturn ctypes.get_errno()"
    assert outcome_of(body) == 38  # ENOSYS, so that libraries fall back to what is refused


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other tables of calls are of x86-64")
def test_the_other_tables_of_system_calls_are_closed_too() -> None:
    x32 = "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nl.syscall(0x40000000 + 41, 2, 1, 0)\nreturn ctypes.get_errno()"
    assert outcome_of(x32) == 1
    int_0x80 = """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]))  # getpid of 32-bit x86
        return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    """
    assert outcome_of(textwrap.dedent(int_0x80)) in ("crashed (SIGSYS)", "crashed (SIGSEGV)")


# files


def test_no_file_can_be_written_anywhere(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("before")
    for path in ("big", str(tmp_path / "new"), str(there), "/dev/shm/loco-escape", "/dev/null"):
        for mode in ("w", "a", "x", "r+"):
            expected = ("PermissionError", "FileNotFoundError", "FileExistsError")
            assert outcome_of(f"open({path!r}, {mode!r}).write('x' * 10**9)") in expected
    assert there.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    "call",
    [
        "mkdir('d')", "makedirs('d/e')", "remove({there!r})", "rename({there!r}, 'x')", "rmdir({folder!r})",
        "truncate({there!r}, 0)", "chmod({there!r}, 0)", "utime({there!r})", "mkfifo('p')",
        "link({there!r}, 'x')", "symlink('/etc', 'x')", "chdir('/')", "mknod('n')", "memfd_create('m')",
        "open({there!r}, os.O_RDONLY | os.O_CREAT)", "open('.', os.O_TMPFILE | os.O_WRONLY)",
        "open({there!r}, os.O_RDONLY | os.O_TRUNC)", "setxattr({there!r}, 'user.a', b'')",
    ],
)  # fmt: skip
def test_no_file_or_folder_is_made_changed_or_removed(call: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("before")
    body = f"import os\nos.{call.format(there=str(there), folder=str(tmp_path))}"
    assert outcome_of(body) == "PermissionError"
    assert there.read_text() == "before"


def test_many_files_cannot_be_held_open() -> None:
    assert outcome_of("import os\nkept = [open(os.__file__) for _ in range(1000)]") == "OSError"


@pytest.mark.parametrize("where", ["passwd", "ssh", "environ", "parent", "root", "link"])
def test_nothing_outside_the_standard_library_can_be_read(where: str, tmp_path: Path) -> None:
    key = tmp_path / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("secret")
    (tmp_path / "link").symlink_to(key)
    path = {
        "passwd": "/etc/passwd",
        "ssh": str(key),
        "environ": "/proc/self/environ",
        "parent": f"/proc/{os.getpid()}/environ",
        "root": f"/proc/self/root{key}",
        "link": str(tmp_path / "link"),
    }[where]
    if "self" not in path:
        assert Path(path).read_bytes()  # what is outside the sandbox can
    assert outcome_of(f"return open({path!r}).read()") == "PermissionError"
    assert (
        outcome_of(f"import os\nreturn os.listdir({os.path.dirname(path)!r})") == "PermissionError"
    )


def test_every_environment_is_hidden_and_its_own_is_empty() -> None:
    code = """
def f():
    import os, glob
    seen = [list(os.environ)]
    for number in range(1, 2**15):
        try: seen.append(open(f'/proc/{number}/environ').read())
        except OSError: pass
    return [x for x in seen if x]
"""
    program = f"""
        from loco.grading import sandbox
        print(sandbox.compute({code!r}, [{{"args": [], "kwargs": {{}}}}], entry="f").answers)
    """
    with in_another_process(program) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert said in (
        "{0: {'step': 0, 'value': {'list': []}}}\n",
        # Python sets it itself where the locale is C
        "{0: {'step': 0, 'value': {'list': [{'list': ['LC_CTYPE']}]}}}\n",
    )


def test_our_own_modules_cannot_be_imported() -> None:
    shared = str(Path(sandbox.__file__).parents[2])
    assert outcome_of("import loco") == "ModuleNotFoundError"
    for module in ("loco.grading.code", "pydantic"):
        body = f"import sys\nsys.path[:0] = {[shared, *sys.path]!r}\nimport {module}"
        assert outcome_of(body) in ("ModuleNotFoundError", "PermissionError")
    assert outcome_of(f"return open({sandbox.__file__!r}).read()") == "PermissionError"


def test_the_cleanup_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_text("kept")
    folder = tmp_path / "folder"
    (folder / "locked").mkdir(parents=True)
    for name in ("a", "locked/b"):
        (folder / name).symlink_to(outside)
        (folder / f"{name}-file").symlink_to(outside / "kept")
    (folder / "locked").chmod(0o500)
    sandbox.remove(str(folder))
    (folder / "locked").chmod(0o700) if folder.exists() else None
    assert (outside / "kept").read_text() == "kept"
    assert outside.stat().st_mode & 0o777 == 0o755
