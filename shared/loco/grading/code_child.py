"""The program in which a model's code runs: it locks itself down, then computes what it is asked.

Started by `sandbox` with `python -I -S`, so it imports the standard library only. It never learns
what is expected of the code: it sends values back, and the parent compares.

    stdin   one JSON object, sent only after `ready`: {"code", "entry", "steps": [STEP, …]}; a STEP is
            {"args", "kwargs"} of a call of `entry`, or {"setup", "expression", "truth"} to evaluate
    stdout  `ready`, or `missing WHAT`; then a JSON object a line: {"step": N, "value" | "error": …}

By hand: `echo '{"code": "def f(x): return x + 1", "entry": "f", "steps": [{"args": [1], "kwargs":
{}}]}' | python -I -S shared/loco/grading/code_child.py 256 5 $$`
"""

import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

#: What the code sees as its module; not `__main__`, so that demonstrations below that test stay out.
_MODULE = "answer"
_LONGEST_ERROR = 200
_LONGEST_PLAIN_INT = 10**15


def main() -> None:
    """Locks down, reads the job, answers a line a step."""
    memory_mb, cpu_seconds, parent = map(int, sys.argv[1:4])
    lockdown: dict[str, Any] = {"__name__": "lockdown"}
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lockdown.py")
    with open(source, encoding="utf-8") as file:
        exec(compile(file.read(), source, "exec"), lockdown)  # noqa: S102
    channel, job_input = _own_channels()
    say = _writer(channel)
    try:
        lockdown["lock"](memory_mb=memory_mb, cpu_seconds=cpu_seconds, parent=parent)
    except lockdown["Missing"] as missing:
        say(f"missing {missing}")
        return
    except Exception as error:  # noqa: BLE001 - the parent must hear of it, and nothing may run
        say(f"missing a working sandbox: {describe(error)}")
        return
    say("ready")
    with open(job_input, "rb") as file:
        job = json.load(file)
    _run(job, say)
    os._exit(0)  # nothing of the code's own (atexit, __del__) runs any more


def _own_channels() -> tuple[int, int]:
    """Copies of stdout and stdin for us; the code's own lead nowhere."""
    channel, job_input = os.dup(1), os.dup(0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return channel, job_input


def _writer(channel: int) -> Callable[[str], None]:
    def say(line: str, write: Callable[[int, bytes], int] = os.write) -> None:
        rest = line.encode("utf-8", "replace") + b"\n"
        while rest:
            rest = rest[write(channel, rest) :]

    return say


def _run(job: dict[str, Any], say: Callable[[str], None], dumps: Any = json.dumps) -> None:
    module = ModuleType(_MODULE)
    sys.modules[_MODULE] = module  # dataclasses and typing look their module up
    names = module.__dict__
    try:
        exec(compile(job["code"], "<answer>", "exec"), names)  # noqa: S102
    except BaseException as error:  # noqa: BLE001 - whatever the code raises is its failure
        say(dumps({"step": -1, "error": describe(error)}))
        return
    for number, step in enumerate(job["steps"]):
        try:
            line = dumps({"step": number, "value": encoded(_value(step, job["entry"], names))})
        except BaseException as error:  # noqa: BLE001
            line = dumps({"step": number, "error": describe(error)})
        say(line)


def _value(step: dict[str, Any], entry: str | None, names: dict[str, Any]) -> object:
    if "expression" not in step:
        if entry not in names:
            raise NameError(f"the answer defines no {entry}")
        value: object = names[entry](*step["args"], **step["kwargs"])
        return value
    exec(compile(step["setup"], "<test>", "exec"), names)  # noqa: S102
    value = eval(compile(step["expression"], "<test>", "eval"), names)  # noqa: S307
    return bool(value) if step["truth"] else value


def encoded(value: object) -> object:  # noqa: PLR0911 - a return a kind
    """A value as JSON that keeps Python's types; `code_values.decoded` reads it.

    Instances of subclasses count as their built-in base, whatever methods they override.

    Raises:
        TypeError: the value has a type that cannot be compared from outside.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int.__pos__(value)
        plain = -_LONGEST_PLAIN_INT < number < _LONGEST_PLAIN_INT
        return number if plain else {"int": hex(number)}
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [complex.__pos__(value).real, complex.__pos__(value).imag]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encoded(item) for item in kind.__iter__(value)]}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {"dict": [[encoded(k), encoded(v)] for k, v in dict.items(value)]}
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if name == "fractions.Fraction":
        return {"fraction": [encoded(value.numerator), encoded(value.denominator)]}  # type: ignore[attr-defined]
    if name == "decimal.Decimal":
        return {"decimal": str(value)}
    raise TypeError(f"the result is a {name.removeprefix('builtins.')}, which cannot be compared")


def describe(error: BaseException) -> str:
    """An error in one line: its class and what it says, however badly that behaves."""
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001
        said = ""
    return f"{type(error).__name__}: {said[:_LONGEST_ERROR]}" if said else type(error).__name__


if __name__ == "__main__":
    main()
