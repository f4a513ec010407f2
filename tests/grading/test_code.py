"""Code in answers: found, run, compared."""

import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loco.contracts.code_tests import CodeTests
from loco.contracts.errors import SandboxUnavailable
from loco.grading import sandbox
from loco.grading.code import find_code, grade_code

ADD = CodeTests.model_validate(
    {
        "entry": "add",
        "cases": [{"args": [2, 3], "expected": 5}, {"kwargs": {"a": 1, "b": 1}, "expected": 2}],
    }
)
RIGHT = "def add(a, b):\n    return a + b\n"


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is:\n\n```{language}\n{code}\n```\n"


def returning(value: str, expected: Any) -> bool:
    """Whether a function that returns the expression passes a case that expects the JSON value."""
    tests = CodeTests.model_validate({"entry": "f", "cases": [{"expected": expected}]})
    return grade_code(fenced(f"def f():\n    return {value}"), tests).correct


def test_right_code_is_right_and_the_code_is_shown() -> None:
    graded = grade_code(fenced(RIGHT), ADD)
    assert graded == (True, RIGHT + "\n", None)


def test_the_first_failing_case_is_named_with_what_it_gave() -> None:
    graded = grade_code(fenced("def add(a, b):\n    return 5"), ADD)
    assert not graded.correct
    assert graded.why == "case 2 of 2: add(a=1, b=1) gave 5, not 2"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def add(a, b):\n    return 1 / 0", "case 1 of 2: ZeroDivisionError: division by zero"),
        ("def plus(a, b): return a + b", "case 1 of 2: NameError: the answer defines no add"),
        ("def add(a, b) return a", "the code does not run: SyntaxError: expected ':'"),
        ("import numpy", "the code does not run: ModuleNotFoundError: No module named 'numpy'"),
        ("raise ValueError('a\\nb\\x1b[31m' + 'c' * 999)", "the code does not run: ValueError: a b [31mccc"),
        ("def add(a, b): return input()", "case 1 of 2: EOFError: EOF when reading a line"),
        ("def add(a, b): return print", "case 1 of 2: TypeError: the result is a builtin_function_or_method"),
        ("def add(a): return a", "case 1 of 2: TypeError: add() takes 1 positional argument but 2 were given"),
    ],
)  # fmt: skip
def test_what_went_wrong_is_said_in_one_line(code: str, why: str) -> None:
    graded = grade_code(fenced(code), ADD)
    assert not graded.correct
    assert graded.why is not None
    assert graded.why.startswith(why)
    assert "\n" not in graded.why
    assert len(graded.why) <= 300


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\na\n```\n```python\nb\n```\n```\nc\n```", "b\n"),
        ("```\na\n```\n```js\nb\n```", "b\n"),
        ("~~~py\na\n~~~", "a\n"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("1. So:\n   ```Python\n   def f():\n       pass\n   ```", "def f():\n    pass\n"),
        ("```python\r\na\r\nb\r\n```\r\n", "a\nb\n"),
        ("```python\nnever closed", "never closed"),
        ("<think>```python\nthought\n```</think>x = 1", "x = 1"),
        ("```python title=\"a.py\"\na\n```", "a\n"),
        ("x = 1", "x = 1"),
    ],
)  # fmt: skip
def test_which_code_of_an_answer_counts(answer: str, code: str) -> None:
    found = find_code(answer)
    assert found is not None
    assert found.code == code


def test_a_block_that_shows_the_use_does_not_hide_the_function() -> None:
    answer = fenced(RIGHT) + "Use it so:\n" + fenced("add(2, 3)\nadd == 1")
    assert grade_code(answer, ADD).correct
    found = find_code(answer)
    assert found is not None
    assert found.code.startswith("add(2, 3)")


@pytest.mark.parametrize("line", ["```" + " " * 100_000 + "`", "`" * 100_000, " " * 100_000 + "x"])
def test_long_lines_are_read_at_once(line: str) -> None:
    started = time.process_time()
    found = find_code(f"{line}\n" * 3, "add")
    assert found is not None
    assert time.process_time() - started < 2


@pytest.mark.parametrize("answer", ["", "   \n", "I cannot do that.", "<think>def add(a, b):"])
def test_an_answer_without_code_is_wrong(answer: str) -> None:
    assert grade_code(answer, ADD) == (False, None, "no code in the answer")


def test_bare_code_needs_no_fence() -> None:
    assert grade_code(RIGHT, ADD).correct


def test_a_demonstration_below_main_is_not_run() -> None:
    demonstration = "if __name__ == '__main__':\n    raise SystemExit(1)"
    assert grade_code(fenced(RIGHT + demonstration), ADD).correct


def test_dataclasses_modules_and_deferred_annotations_work() -> None:
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport zoneinfo, "
        "sqlite3, decimal\n@dataclass\nclass P:\n    x: int\ndef add(a, b):\n    return P(a + b).x"
    )
    assert grade_code(fenced(code), ADD).correct


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("(1, (2, 'x'))", [1, [2, "x"]]),
        ("{3, 1, 2}", [1, 2, 3]),
        ("{(1, 2)}", [[1, 2]]),
        ("{1: None, 'a': True}", {"1": None, "a": True}),
        ("{True: 1}", {"true": 1}),
        ("0.1 + 0.2", 0.3),
        ("0.1 + 0.2 - 0.3", 0),
        ("2", 2.0),
        ("10 ** 40", 10**40),
        ("-10 ** 40", -(10**40)),
        ("__import__('fractions').Fraction(1, 4)", 0.25),
        ("__import__('decimal').Decimal('2.50')", 2.5),
        ("__import__('collections').Counter('aab')", {"a": 2, "b": 1}),
        ("'\\ud800 é \\n'", "\ud800 é \n"),
        ("None", None),
    ],
)
def test_values_that_equal_what_json_can_say(value: str, expected: object) -> None:
    assert returning(value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[1, 2, 3]", [1, 2]),
        ("[2, 1]", [1, 2]),
        ("{1, 2}", [1, 1]),
        ("{1: 1, '1': 2}", {"1": 1}),
        ("{'a': 1}", {"a": 2}),
        ("'1'", 1),
        ("1", "1"),
        ("None", False),
        ("0.3001", 0.3),
        ("float('nan')", 0.5),
        ("float('inf')", 10**400),
        ("10 ** 40 + 1", 10**40),
        ("[]", {}),
        ("b'a'", "a"),
        ("iter([1])", [1]),
    ],
)
def test_values_that_do_not(value: str, expected: object) -> None:
    assert not returning(value, expected)


@pytest.mark.parametrize(
    "text",
    [
        "assert f(2) == 4",
        "assert 4 == f(2), 'message'",
        "assert f(2) == 4 and f(3) != 4 and not f(0)",
        "assert f(2) == 5 or f(3) == 9",
        "assert 3 < f(2) <= 4 < f(3)",
        "assert abs(f(0.1) - 0.01) < 1e-9",
        "import math\nassert math.isclose(f(0.1), 0.01)",
        "assert f(2) in (4, 5) and f(3) not in {4, 5}",
        "assert f(2) is not None",
        "assert (f(2) == 4) is True",
        "assert (f(1), f(2)) == (1, 4)",
        "assert [f(x) for x in range(3)] == [0, 1, 4]",
        "assert list(map(f, [1, 2])) == [1, 4]",
        "assert set([f(2), f(-2)]) == set([4])",
        "assert sorted(f(x) for x in (2, 1)) == sorted([4, 1])",
        "values = [3]\nvalues.append(f(2))\nassert values == [3, 4]",
        "assert f(2)",
        "assert isinstance(f(2), int)",
        "assert (f(0) or 7) == 7",
        "assert f(float('inf')) == float('inf')",
        "assert f(2) == f(-2)",
    ],
)
def test_asserts_of_every_form(text: str) -> None:
    tests = CodeTests.model_validate({"asserts": [text]})
    assert grade_code(fenced("def f(x): return x * x"), tests) == (
        True,
        "def f(x): return x * x\n",
        None,
    )
    wrong = ("def f(x): return None", "def f(x): return [x]")
    assert not all(grade_code(fenced(code), tests).correct for code in wrong)


def test_a_failing_assert_is_named_with_what_it_gave() -> None:
    tests = CodeTests.model_validate({"asserts": ["assert f(1) == 1", "assert f(2) == 4"]})
    graded = grade_code(fenced("def f(x): return x"), tests)
    assert graded.why == "assert 2 of 2: f(2) == 4 is false: f(2) gave 2"


def test_a_function_named_like_one_of_ours_is_the_answers_own() -> None:
    named = CodeTests.model_validate(
        {"entry": "sorted", "asserts": ["assert sorted([2, 1]) == [1, 2]"]}
    )
    unnamed = CodeTests.model_validate({"asserts": ["assert abs(-2)"]})
    assert not grade_code(fenced("def sorted(x): return x"), named).correct
    assert not grade_code(fenced("def abs(x): return 0"), unnamed).correct


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "needs `cases` or `asserts`"),
        ({"cases": [{"expected": 1}]}, "`cases` need `entry`"),
        ({"entry": "a.b", "cases": [{"expected": 1}]}, "name of a function"),
        ({"entry": "lambda", "cases": [{"expected": 1}]}, "name of a function"),
        ({"asserts": ["f(2) == 4"]}, "assert 1 must end with an assert"),
        ({"asserts": ["assert f(2) == 4", "assert f("]}, "assert 2 is not Python"),
        ({"asserts": ["assert 1 == 1"]}, "does not test the answer"),
        ({"asserts": ["assert f()"], "seconds": 11}, "less than or equal to 10"),
        ({"asserts": ["assert f()"], "memory_mb": 16}, "greater than or equal to 64"),
        ({"asserts": ["assert f()"], "language": "ruby"}, "'python'"),
        ({"asserts": ["assert f()"], "stdin": ""}, "Extra inputs"),
    ],
)
def test_tests_that_cannot_be_run_or_cannot_fail_are_refused(body: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CodeTests.model_validate(body)


def test_many_threads_at_once_get_their_own_verdicts() -> None:
    def graded(number: int) -> bool:
        tests = CodeTests.model_validate({"entry": "f", "cases": [{"expected": number}]})
        return grade_code(fenced(f"def f(): return {number - number % 2}"), tests).correct

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(graded, range(32))) == [n % 2 == 0 for n in range(32)]


def test_an_ordinary_case_costs_less_than_150_ms_of_processor() -> None:
    def used() -> float:
        return sum(
            sum(resource.getrusage(who)[:2])
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )

    before = used()
    for _ in range(5):
        assert grade_code(fenced(RIGHT), ADD).correct
    assert (used() - before) / 5 < 0.15


def test_a_job_larger_than_a_pipe_arrives() -> None:
    tests = CodeTests.model_validate(
        {"entry": "f", "cases": [{"args": ["x" * 1_000_000], "expected": 1_000_000}]}
    )
    assert grade_code(fenced("def f(x): return len(x)"), tests).correct


def test_no_process_and_no_folder_is_left(tmp_path: Path) -> None:
    program = (
        "import os, tempfile\n"
        "from loco.grading.code import grade_code\n"
        "from loco.contracts.code_tests import CodeTests\n"
        "tests = CodeTests(asserts=('assert f()',), seconds=0.5)\n"
        "for body in ('return 1', 'return 0', 'while True: pass', 'import os; os._exit(0)'):\n"
        "    print(grade_code(f'```\\ndef f():\\n    {body}\\n```', tests).correct)\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\n"
        "except ChildProcessError: print('no child')\n"
        "print(os.listdir(tempfile.gettempdir()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[:6] == ["True", "False", "False", "False", "no child", "[]"]


def test_another_system_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match=r"Missing: Linux \(this is darwin\)"):
        grade_code(fenced(RIGHT), ADD)


def test_an_interpreter_that_does_not_start_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="an interpreter that starts"):
        sandbox.require_sandbox()


def test_an_interpreter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxUnavailable, match=r"an interpreter that starts: .*/nowhere/python"):
        grade_code(fenced(RIGHT), ADD)


def test_this_machine_can_grade_code() -> None:
    started = time.monotonic()
    sandbox.require_sandbox()
    assert time.monotonic() - started < 10
