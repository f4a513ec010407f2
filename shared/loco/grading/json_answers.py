"""Whether an answer holds the expected JSON value.

The value may stand alone, in a fence, or within a sentence. What a model writes is hostile input: depth,
length of numbers and the number of tries are bounded.
"""

import json
import re
from typing import NamedTuple

from pydantic import JsonValue

from loco.contracts.grading import DEEPEST_JSON, JsonGrader, JsonType, depth

_OPENING = re.compile(r"[{\[]")
_FENCE = re.compile(r"```[ \t]*+[\w+-]*+[ \t]*+\n(.*?)```", re.S)
#: Places in a text where a value is tried.
_TRIES = 50

_TYPES: dict[JsonType, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "list": list,
    "object": dict,
}


class Read(NamedTuple):
    """A JSON value of an answer."""

    value: JsonValue


def parsed(text: str) -> Read | None:
    """The JSON value a text consists of, or None.

    None too for NaN and Infinity, which JSON has not, and for values nested too deep.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return None if depth(value) > DEEPEST_JSON else Read(value)


def found(text: str, *, only: bool = False) -> Read | None:
    """The JSON value an answer gives, or None.

    Args:
        text: the answer.
        only: it must be JSON and nothing else.
    """
    whole = parsed(text.strip())
    if whole is not None or only:
        return whole
    for fenced in reversed(_FENCE.findall(text)[-_TRIES:]):
        if (read := parsed(fenced.strip())) is not None:
            return read
    return _embedded(text)


def fault(grader: JsonGrader, expected: Read | None, read: Read) -> str | None:
    """What is wrong with a value, in words, or None when it is right."""
    if grader.types:
        if not isinstance(read.value, dict):
            return "is not a JSON object"
        for field, kind in grader.types.items():
            if field not in read.value:
                return f"has no field {field!r}"
            if not _is(read.value[field], kind):
                return f"field {field!r} is not a {kind}"
    if expected is not None and not _equal(grader, expected.value, read.value):
        return f"is not {written(expected):.200}"
    return None


def written(read: Read) -> str:
    """A value as text, for people."""
    try:
        return json.dumps(read.value, ensure_ascii=False)
    except ValueError:  # an integer of more digits than Python writes
        return "(a very long number)"


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _embedded(text: str) -> Read | None:
    """The first list or object within a text."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    position, tries = 0, 0
    while (match := _OPENING.search(text, position)) and tries < _TRIES:
        tries += 1
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.end()
            continue
        return None if depth(value) > DEEPEST_JSON else Read(value)
    return None


def _is(value: JsonValue, kind: JsonType) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])


def _equal(grader: JsonGrader, expected: JsonValue, value: JsonValue) -> bool:
    """Equality by JSON's types: 1 is 1.0, true is not 1. No deeper than `expected` is."""
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and expected.keys() <= value.keys()
            and (grader.subset or len(value) == len(expected))
            and all(_equal(grader, v, value[k]) for k, v in expected.items())
        )
    if isinstance(expected, list):
        if not isinstance(value, list) or len(value) != len(expected):
            return False
        if grader.any_order:
            return _matched(grader, expected, value)
        return all(_equal(grader, a, b) for a, b in zip(expected, value, strict=True))
    if isinstance(expected, str) and isinstance(value, str) and grader.ignore_case:
        return expected.casefold() == value.casefold()
    return isinstance(expected, bool) == isinstance(value, bool) and expected == value


def _matched(grader: JsonGrader, expected: list[JsonValue], value: list[JsonValue]) -> bool:
    """Whether lists are equal in some order.

    Each expected one takes the first equal one left. With `subset` that may miss a pairing where one
    value fits two expected ones: put the more demanding one first.
    """
    left = list(value)
    for wanted in expected:
        at = next((i for i, v in enumerate(left) if _equal(grader, wanted, v)), None)
        if at is None:
            return False
        del left[at]
    return True
