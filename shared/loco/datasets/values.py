"""JSON that others wrote: no line too long, too deep, or with a number that costs minutes to read."""

import json

#: Characters of a line.
LONGEST_LINE = 16 * 2**20
#: Digits of a whole number; Python reads no more than 4,300, in time that grows with their square.
LONGEST_WHOLE = 4000


def value_of(line: str) -> object:
    """The JSON value of a line.

    Raises:
        json.JSONDecodeError: it isn't JSON.
        ValueError: it can't be used: too long, nested too deep, a number that is none or too long.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE:,} characters")
    try:
        return json.loads(line, parse_constant=_no_number, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_WHOLE:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
