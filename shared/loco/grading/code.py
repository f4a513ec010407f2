"""Grades code: finds it in an answer, has a locked-down child run it, compares what comes back.

What a model wrote is run, so what can it do? Nothing but compute: see `lockdown` for the walls,
`code_checks` for who compares, docs/eval.md for what remains possible. Only the standard library
can be imported, and threads, processes, sockets and files to write do not exist.

A pure function of the answer and the tests but for the limits of time: no service behind it, safe
in several threads at once.
"""

import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from loco.contracts.code_tests import CodeTests
from loco.grading import sandbox
from loco.grading.code_checks import Check, checks
from loco.grading.code_values import decoded, one_line
from loco.grading.verdict import Graded

_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.S)
# CommonMark: three or more backticks or tildes; the end has at least as many, or is the end of the text.
# Possessive, or a long line of blanks would be tried in every division.
_FENCE = re.compile(
    r"^[ \t]*+(?P<fence>(?P<mark>[`~])(?P=mark){2,}+)[ \t]*+(?P<language>[^\s`]*+)[^\n`]*+\n"
    r"(?P<code>.*?)(?:^[ \t]*+(?P=fence)(?P=mark)*+[ \t]*+$|\Z)",
    re.M | re.S,
)
_PYTHON = ("python", "py", "python3")
_LONGEST_CODE = 200_000
_LONGEST_WHY = 300


class Found(NamedTuple):
    """The code of an answer."""

    code: str
    #: Whether it stood in a fenced block; else it is the whole text, which may be no code.
    fenced: bool


class _Failed(Exception):
    """A step raised, or its value cannot be compared."""


def grade_code(text: str, tests: CodeTests) -> Graded:
    """Whether the code in an answer passes every test.

    Args:
        text: all the model wrote; `find_code` says which part of it is run.
        tests: calls and asserts, and the limits.

    Returns:
        The verdict; `extracted` is the code, `why` names the first test that failed and how.

    Raises:
        SandboxUnavailable: this machine cannot run code safely; nothing was run.
    """
    found = find_code(text, tests.entry)
    if found is None:
        return Graded(False, None, "no code in the answer")
    if len(found.code) > _LONGEST_CODE:
        return Graded(False, None, f"more than {_LONGEST_CODE} characters of code")
    planned = checks(tests)
    outcome = sandbox.compute(
        found.code,
        [step for check in planned for step in check.steps],
        entry=tests.entry,
        seconds=tests.seconds,
        memory_mb=tests.memory_mb,
    )
    broken = str(outcome.answers.get(-1, {}).get("error", ""))
    if broken and not found.fenced and broken.startswith(("SyntaxError", "IndentationError")):
        return Graded(False, None, "no code in the answer")
    why = f"the code does not run: {broken}" if broken else _first_failure(planned, outcome)
    return Graded(why is None, found.code, why and one_line(why, _LONGEST_WHY))


def find_code(text: str, entry: str | None = None) -> Found | None:
    """The code of an answer: the last fenced block in Python, else the last one, else all the text.

    Where `entry` is named, the last of those blocks that defines it, if one does: answers like to
    close with a block that shows how to call it. Thoughts (`<think>`) do not count; a fence that is
    never closed ends with the text.
    """
    text = _THINKING.sub("", text.replace("\r\n", "\n"))
    blocks = [(m["language"].lower(), m["code"]) for m in _FENCE.finditer(text)]
    blocks = [block for block in blocks if block[0] in _PYTHON] or blocks
    codes = [textwrap.dedent(code) for _, code in blocks]
    if entry is not None:
        defines = re.compile(
            rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{entry}\b|^{entry}[ \t]*(?::[^=\n]+)?=(?!=)",
            re.M,
        )
        codes = [code for code in codes if defines.search(code)] or codes
    if codes:
        return Found(codes[-1], fenced=True)
    return Found(text.strip(), fenced=False) if text.strip() else None


def _first_failure(planned: list[Check], outcome: sandbox.Outcome) -> str | None:
    first = 0
    for check in planned:
        answers = [outcome.answers.get(first + n) for n in range(len(check.steps))]
        first += len(answers)
        if None in answers:
            return f"{check.name}: the code {outcome.ended or 'returned something else'}"

        def value(index: int, answers: list[Any] = answers) -> object:
            return _value(answers[index])

        try:
            if not check.passes(value):
                return f"{check.name}: {check.says(value)}"
        except _Failed as failure:
            return f"{check.name}: {failure}"
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            return f"{check.name}: its result cannot be compared ({error})"
    return None


def _value(answer: Mapping[str, Any]) -> object:
    if "value" not in answer:
        raise _Failed(str(answer.get("error", "no value")))
    try:
        return decoded(answer["value"])
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise _Failed(f"what it gave cannot be compared ({error})") from error
