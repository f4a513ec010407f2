"""Text of others (rows, answers, logs, names) as it may go to a terminal."""

import re

#: C0 and C1 controls but tab and newline, DEL, and what reverses the reading order of a line
#: (Unicode TR 36): a terminal obeys the former, a reader is misled by the latter.
_OBEYED = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_IN_TEXT = re.compile(f"[{_OBEYED}]")
_IN_A_LINE = re.compile(f"[\t\n{_OBEYED}]")


def printable(text: str) -> str:
    r"""The text with every character that a terminal would obey written out, like `\x1b`."""
    return _IN_TEXT.sub(_written_out, text)


def one_line(text: str) -> str:
    r"""As `printable`, with line breaks written out too: it cannot pass for a line of ours."""
    return _IN_A_LINE.sub(_written_out, text)


def json_printable(document: str) -> str:
    r"""A JSON document with such characters as `\u009b`; it says the same."""
    return _IN_TEXT.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
