"""Code that never ends, eats memory, forges results or agrees with everything."""

import time

import pytest
from locked_code import grade, outcome_of

from loco.contracts.code_tests import CodeTests
from loco.grading.code import grade_code

# time and memory


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "return 9 ** 9 ** 9",
        "import time\ntime.sleep(60)",
        "import signal\nfor s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "while True: print('x' * 10**6)",
        "import sys\nwhile True: sys.stderr.write('x' * 10**6)",
    ],
)
def test_endless_code_ends_in_time(body: str) -> None:
    started = time.monotonic()
    assert outcome_of(body, seconds=0.5) in ("took longer than 0.5 s", "MemoryError")
    assert time.monotonic() - started < 10


def test_code_that_hangs_before_a_case_ends_in_time() -> None:
    graded = grade("while True: pass", seconds=0.5)
    assert graded.why == "case 1 of 1: the code took longer than 0.5 s"


def test_memory_is_limited() -> None:
    assert outcome_of("return len(bytearray(1 << 30))") == "MemoryError"
    assert outcome_of("kept = []\nwhile True: kept.append(bytearray(1 << 20))") == "MemoryError"
    held = outcome_of("return len(bytearray(400 << 20))", memory_mb=1024, seconds=10)
    assert held == 400 << 20


def test_deep_recursion_and_deep_results_are_failures_of_their_own() -> None:
    assert outcome_of("f()") in ("RecursionError", "done")
    deep = grade("def f():\n    x = []\n    for _ in range(100_000): x = [x]\n    return x")
    assert deep.why is not None
    assert deep.why.startswith("case 1 of 1: RecursionError")


def test_a_crash_is_named() -> None:
    assert outcome_of("import ctypes\nctypes.string_at(0)") == "crashed (SIGSEGV)"


def test_a_flood_of_results_is_cut_off() -> None:
    assert (
        grade("def f(): return 'x' * 10**7").why == "case 1 of 1: the code returned more than 1 MiB"
    )
    many = grade("def f(): return list(range(10**6))")
    assert many.why == "case 1 of 1: the code returned more than 1 MiB"


def test_values_made_to_be_slow_to_compare_are_not_compared() -> None:
    prime = 2**61 - 1  # equal hashes
    started = time.monotonic()
    for value in (
        f"{{k * {prime} for k in range(6_000)}}",
        f"{{k * {prime}: 1 for k in range(6_000)}}",
        "1 << 1_000_000",
    ):
        graded = grade(f"def f(): return {value}", [1])
        assert not graded.correct
    forged = grade(_forging('{"step": 0, "value": {"fraction": ["1e999999999", "1"]}}'), 1)
    assert not forged.correct
    assert time.monotonic() - started < 20


# cheating


def _forging(line: str, then: str = "os._exit(0)") -> str:
    return (
        "import os\nfor d in range(64):\n"
        f"    try: os.write(d, {line + chr(10)!r}.encode())\n    except OSError: pass\n{then}\n"
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 0, "value": true}',
        '{"step": 0, "correct": true}',
        '{"correct": true, "why": null}',
        '{"step": 0, "value": {"any": 1}}',
        '{"step": true, "value": 41}',
        '{"step": 0}',
        "ready",
        "[" * 100_000,
        "\x00",
    ],
)
def test_forged_lines_gain_nothing(line: str) -> None:
    assert not grade(_forging(line), 41).correct


def test_a_forged_line_in_front_of_the_true_one_is_taken_as_the_value() -> None:
    code = _forging('{"step": 0, "value": 1}', "def f(): return 41")
    assert grade(code, 41).why == "case 1 of 1: f() gave 1, not 41"


def test_a_closed_channel_is_no_result() -> None:
    graded = grade("import os\nos.closerange(0, 64)\ndef f(): return 41", 41)
    assert not graded.correct


SEARCHING = """
def f(*args):
    import gc, sys
    seen = [repr(x) for x in gc.get_objects() if isinstance(x, (dict, list, tuple))]
    frame = sys._getframe().f_back
    while frame:
        seen.append(repr(frame.f_locals))
        frame = frame.f_back
    sought = ''.join(reversed('14MARKED'))
    return sought if any(sought in s for s in seen) else 'unseen'
"""


def test_the_child_is_never_told_what_is_expected() -> None:
    assert grade(SEARCHING, "DEKRAM41").why == "case 1 of 1: f() gave 'unseen', not 'DEKRAM41'"
    for text in ("assert f() == 'DEKRAM41'", "assert f() in ['DEKRAM41'] and f('x') != 'x'"):
        tests = CodeTests.model_validate({"asserts": [text]})
        assert not grade_code(f"```python\n{SEARCHING}\n```", tests).correct
    told = {"entry": "f", "cases": [{"args": ["DEKRAM41"], "expected": "DEKRAM41"}]}
    found = grade_code(f"```python\n{SEARCHING}\n```", CodeTests.model_validate(told))
    assert found.correct  # what the child is told, such a search does find


ALWAYS = """
class Always(int):
    def __eq__(self, other): return True
    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __eq__
    __hash__ = int.__hash__
    def __sub__(self, other): return Always(0)
    __rsub__ = __sub__
    def __abs__(self): return self
"""


@pytest.mark.parametrize(
    "text",
    [
        "assert f(2) == 4",
        "assert 4 == f(2)",
        "assert abs(f(2) - 4) < 1e-6",
        "assert f(2) == 4 and f(3) == 9",
        "assert f(2) in [4, 5]",
        "import math\nassert math.isclose(f(2), 4)",
        "assert set([f(2)]) == set([4])",
    ],
)
@pytest.mark.parametrize(
    "code",
    [
        ALWAYS + "def f(x): return Always(7)",
        ALWAYS.replace("(int)", "(object)") + "def f(x): return Always()",
        "import builtins, math\ndef always(*a, **k): return 4.0\nbuiltins.abs = always\n"
        "math.isclose = lambda *a, **k: True\nbuiltins.set = lambda x: 0\ndef f(x): return 7",
    ],
)
def test_objects_and_functions_that_agree_with_everything_do_not_pass(code: str, text: str) -> None:
    tests = CodeTests.model_validate({"asserts": [text]})
    assert not grade_code(f"```python\n{code}\n```", tests).correct


def test_an_object_that_equals_everything_fails_a_case() -> None:
    assert not grade(ALWAYS + "def f(): return Always(7)", 4).correct
    assert grade(ALWAYS + "def f(): return Always(4)", 4).correct  # as the int it is


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import sys\nsys.exit(0)", "the code does not run: SystemExit: 0"),
        ("def f():\n    raise SystemExit", "case 1 of 1: SystemExit"),
        ("import os\nos._exit(0)", "case 1 of 1: the code ended the interpreter"),
        ("def f():\n    import os\n    os._exit(0)", "case 1 of 1: the code ended the interpreter"),
        ("def f(): raise KeyboardInterrupt", "case 1 of 1: KeyboardInterrupt"),
    ],
)
def test_leaving_early_is_a_failure(code: str, why: str) -> None:
    assert grade(code, None) == (False, code + "\n", why)


def test_errors_that_misbehave_when_shown_are_failures() -> None:
    code = "class E(Exception):\n    def __str__(self): raise self\ndef f(): raise E"
    assert grade(code).why == "case 1 of 1: E"


@pytest.mark.parametrize(
    "code",
    [
        "import atexit, time\natexit.register(time.sleep, 60)\ndef f(): return 4",
        "import os, time\nos._exit = lambda c: time.sleep(60)\ndef f(): return 4",
        "class D:\n    def __del__(self):\n        while True: pass\nkept = D()\ndef f(): return 4",
    ],
)
def test_what_hangs_after_the_results_delays_nothing(code: str) -> None:
    started = time.monotonic()
    assert grade(code, 4, seconds=10).correct
    assert time.monotonic() - started < 8


def test_a_result_that_hangs_when_dropped_ends_in_time() -> None:
    code = "class D(list):\n    def __del__(self):\n        while True: pass\ndef f():\n    D()\n    return 4"
    assert grade(code, 4, seconds=0.5).why == "case 1 of 1: the code took longer than 0.5 s"
