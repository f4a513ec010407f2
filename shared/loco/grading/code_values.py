"""Values that came from a child: back to Python, compared, and shown in a line."""

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

#: Floats of a case are equal within this part of the larger one, or this near to 0.
RELATIVE, ABSOLUTE = 1e-9, 1e-12
# Whoever chooses the keys of a table chooses how slow it is: hashes of numbers can be made to collide.
_MOST_KEYS = 5000
_LONGEST_HEX = 100_000
_LONGEST_SHOWN = 80


def decoded(sent: object) -> object:
    """The value that `code_child.encoded` wrote.

    Raises:
        ValueError: it is no such thing, or too large to compare.
    """
    if not isinstance(sent, dict):
        if isinstance(sent, list):
            raise ValueError("malformed result")
        return sent
    ((kind, content),) = sent.items()
    if kind not in _DECODERS:
        raise ValueError("malformed result")
    return _DECODERS[kind](content)


def _integer(text: str) -> int:
    if len(text) > _LONGEST_HEX:
        raise ValueError("number too large to compare")
    return int(text, 16)


def _fraction(parts: list[object]) -> Fraction:
    top, bottom = map(decoded, parts)
    # of text it would be "1e999999999", and computed for hours
    if not isinstance(top, int) or not isinstance(bottom, int):
        raise ValueError("malformed result")
    return Fraction(top, bottom)


def _items(content: list[object]) -> list[object]:
    return [decoded(item) for item in content]


def _keys(content: list[Any]) -> list[Any]:
    if len(content) > _MOST_KEYS:
        raise ValueError(f"more than {_MOST_KEYS} keys or members to compare")
    return content


_DECODERS: Mapping[str, Callable[[Any], object]] = {
    "int": _integer,
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "fraction": _fraction,
    "decimal": Decimal,
    "list": _items,
    "tuple": lambda content: tuple(_items(content)),
    "set": lambda content: set(_items(_keys(content))),
    "frozenset": lambda content: frozenset(_items(_keys(content))),
    "dict": lambda content: {decoded(k): decoded(v) for k, v in _keys(content)},
}


def same_as_json(expected: object, value: object) -> bool:
    """Whether a value is what JSON says it must be.

    Tuples equal lists, sets equal lists in any order, keys that are no text equal what JSON makes
    of them, and floats are equal but for rounding; all else as Python has it.
    """
    if isinstance(expected, list):
        return _same_list(expected, value)
    if isinstance(expected, dict):
        return _same_dict(expected, value)
    numbers = isinstance(expected, int | float) and isinstance(
        value, int | float | Fraction | Decimal
    )
    if numbers and not (isinstance(expected, int) and isinstance(value, int)):
        return _close(expected, value)  # type: ignore[arg-type]
    return expected == value


def _same_list(expected: list[object], value: object) -> bool:
    if isinstance(value, set | frozenset):
        return len(expected) == len(value) and {_hashable(e) for e in expected} == value
    return (
        isinstance(value, list | tuple)
        and len(expected) == len(value)
        and all(map(same_as_json, expected, value))
    )


def _same_dict(expected: dict[Any, Any], value: object) -> bool:
    if not isinstance(value, dict) or len(expected) != len(value):
        return False
    by_text = {_key(k): v for k, v in value.items()}
    return by_text.keys() == expected.keys() and all(
        same_as_json(expected[k], v) for k, v in by_text.items()
    )


def _close(a: float, b: float | Fraction | Decimal) -> bool:
    try:
        return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    except (OverflowError, ValueError):  # an integer beyond floats; a signalling NaN
        return a == b


def _hashable(value: object) -> object:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _key(key: object) -> object:
    if isinstance(key, bool) or key is None:
        return {True: "true", False: "false", None: "null"}[key]
    return str(key) if isinstance(key, int | float) else key


def shown(value: object) -> str:
    """A value as one short line of printable characters."""
    try:
        return one_line(repr(value))
    except ValueError:  # sys.set_int_max_str_digits
        return "a very large number"


def one_line(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """Text in one line without control characters, cut where it is long."""
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * longest])
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
