r"""Finds the final answer in what a model wrote, and says whether it is the expected one.

A model may write "The answer is $1,234.50.", `\boxed{\frac{3}{4}}`, "x = 4", "**25%**" or a
number in running text. The most explicit form wins; among equals, the last.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

#: Two numbers are equal when they differ by less than this part of the larger one (float noise).
RELATIVE_TOLERANCE = Fraction(1, 10**6)

#: Digits of a number that is read as one. Longer ones are no answers, and reading them takes time that
#: grows with the square of their length (Python refuses from 4,300 digits on).
LONGEST_NUMBER = 300

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_CURRENCY = r"[$€£¥]"
# a sign counts only where no operand stands before it: "10-5" has no -5
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\].%])[-+]\s?)?
    {_CURRENCY}?\s?(?P<inner_sign>(?<=[$€£¥])-)?
    (?:
        (?P<whole>\d+)\s+(?P<mixed_top>\d+)\s*/\s*(?P<mixed_bottom>0*[1-9]\d*)
      | (?P<top>{_UNSIGNED})(?:\s*/\s*(?P<bottom>0*[1-9]\d*(?:\.\d+)?))?
    )
    (?P<percent>\s?%|\s+per\s?cent\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PHRASE = re.compile(
    r"\b(?:final\s+)?(?:answer|result|solution)\s*(?:\w+\s+)?(?:is|=|:|would\s+be|should\s+be)",
    re.I,
)
# GSM8K's own form of a last line
_LAST_LINE_A = re.compile(r"(?:\A|\n)[ \t]*A:(?=[^\n]*+\s*+\Z)")
#: "= 42.857, which rounds down to 43" closes with 43
_ROUNDS = re.compile(r"\bround(?:s|ed)\s+(?:up|down|off)\s+to\s+(?!the\b)", re.I)
_PLACES = re.compile(r"\s*(?:decimal|digit|place|significant)", re.I)
_HASHES = re.compile(r"####")
# "= 42" closes a calculation only when no operator follows: in "x = 3 + 4" the 3 is an operand
_EQUALS = re.compile(r"(?:=|≈)\s*")
_OPERATOR_NEXT = re.compile(
    r"\s*(?:[+*/\u00d7÷=·^(]|-\s*\d|[-]\s|x\s*\d|[a-z]\b(?=\s*[-+=*/]))", re.I
)
# a further number or LaTeX: "9\\pi" is not 9; degrees are a unit
_NOT_A_UNIT = re.compile(r"\d|π|\\(?!circ\b|degree\b)[a-z]", re.I)
_SIGNS = {ord(a): b for a, b in zip("⁄−–—’", ("/", "-", "-", " ", "'"), strict=True)}  # noqa: RUF001
_BOLD = re.compile(r"\*\*(.+?)\*\*", re.S)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.S)


class Number(NamedTuple):
    """A number as it was written."""

    #: As written, without currency sign and unit.
    text: str
    #: Exact value; of "25 %" 25.
    value: Fraction
    #: Whether a percent sign follows.
    percent: bool


def extract(text: str) -> Number | None:
    r"""The number a text gives as its answer, or None when it names none.

    In this order: the last `\boxed{}`, the last "answer is" (or `####`), a last line "A: N", the last
    closing "= N" or bold number, the last number.
    """
    text = plain(text)
    for explicit in (
        _boxed(text),
        _after_last(_HASHES, text),
        _after_last(_PHRASE, text),
        _after_last(_LAST_LINE_A, text),
    ):
        if explicit is not None and (number := _of_statement(explicit)) is not None:
            return number
    closing = [(match.start(), number) for match, number in _closings(text)]
    if closing:
        return max(closing, key=lambda c: c[0])[1]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def extract_words(text: str) -> str:
    """What a text gives as its answer when that is not a number, normalised for comparison."""
    text = plain(text)
    statement = stated(text)
    if statement is None:
        lines = [line for line in text.splitlines() if line.strip()]
        statement = lines[-1] if lines else ""
    return _normal_words(statement.strip().splitlines()[0] if statement.strip() else "")


def words_in(text: str) -> str:
    """The words that an expected answer consists of, normalised; "" of nothing but punctuation."""
    return _normal_words(plain(text))


def stated(text: str) -> str | None:
    r"""What follows the most explicit mark of an answer in plain text, or None without any.

    The marks: the last `\boxed{}` (its inside), the last `####`, the last "answer is".
    """
    return _boxed(text) or _after_last(_HASHES, text) or _after_last(_PHRASE, text)


def is_words(expected: str, text: str) -> bool:
    """Whether a text gives the expected words, but for case, punctuation and spacing."""
    return bool(text.strip()) and extract_words(text) == words_in(expected)


def is_correct(expected: str, text: str) -> bool:
    """Whether a model's text gives the expected answer.

    Args:
        expected: a number in any of the written forms, or words.
        text: all the model wrote.
    """
    wanted = parse(expected)
    if wanted is None:
        return is_words(expected, text)
    found = extract(text)
    return found is not None and same(wanted, found)


def parse(text: str) -> Number | None:
    """The number a text consists of (a unit may follow), or None."""
    text = plain(text).strip().strip("*").rstrip(".")
    match = _NUMBER.match(text)
    if match is None or _too_long(match) or _NOT_A_UNIT.search(text, match.end()):
        return None
    return _number(match)


def same(expected: Number, found: Number) -> bool:
    """Whether two numbers are equal but for rounding.

    "25%" equals both 25 and 0.25, since problems ask for either. A fraction without a finite
    decimal (1/3) equals its value rounded to two or more places.
    """
    pairs = [(expected.value, found.value)]
    if expected.percent != found.percent:
        pairs.append(
            (expected.value / 100, found.value)
            if expected.percent
            else (expected.value, found.value / 100)
        )
    return any(_close(a, b) or _rounded(a, b, found.text) for a, b in pairs)


def plain(text: str) -> str:
    """A model's text without thinking, LaTeX marks and typographic variants of signs."""
    text = without_thinking(text)
    text = text.replace("{,}", ",").replace("\\,", "").replace("\\!", "").replace("\\ ", " ")
    for mark in ("\\(", "\\)", "\\[", "\\]", "$$"):
        text = text.replace(mark, " ")
    text = text.replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\\(?:left|right)\b", "", text)
    text = re.sub(r"\\(?:times|cdot)\b", "*", text).replace("\\div", "/")
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = _FRACTION.sub(r" \1/\2", text)
    # NFKC writes a half as 1/2 right behind a digit: keep "2½" a mixed number
    text = re.sub(r"(?<=\d)(?=[¼½¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text)
    return text.translate(_SIGNS)


def without_thinking(text: str) -> str:
    """A model's text without its `<think>` parts, of which the last may be unfinished."""
    return _THINKING.sub(" ", text)


def folded(text: str, *, ignore_case: bool = True) -> str:
    """A text for looking phrases up: typographic variants, bold and code marks, runs of spaces gone."""
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    text = text.translate({ord("“"): '"', ord("”"): '"', ord("‘"): "'"})  # noqa: RUF001
    text = " ".join(text.replace("**", "").replace("`", "").split())
    return text.casefold() if ignore_case else text


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return text[begin:]


def _after_last(pattern: re.Pattern[str], text: str) -> str | None:
    matches = list(pattern.finditer(text))
    return text[matches[-1].end() :] if matches else None


def _of_statement(statement: str) -> Number | None:
    """The number a statement ("5 + 3 = 8 apples.") says: behind its last "=", else its first."""
    lines = statement.strip().strip("*: ").splitlines()
    first = re.split(r"(?<=[^\d])[.;!?](?=\s|$)|(?<=\d)\.(?=\s|$)", lines[0])[0] if lines else ""
    head, equals, tail = first.rpartition("=")
    numbers = _numbers(tail) if equals else []
    numbers = numbers or _numbers(head if equals else first)
    return numbers[0] if numbers else None


def _closings(text: str) -> list[tuple[re.Match[str], Number]]:
    found: list[tuple[re.Match[str], Number]] = []
    for equals in _EQUALS.finditer(text):
        match = _NUMBER.match(text, equals.end())
        if match is None or _too_long(match):
            continue
        if not _OPERATOR_NEXT.match(text, match.end()):
            found.append((equals, _number(match)))
    for rounds in _ROUNDS.finditer(text):
        match = _NUMBER.match(text, rounds.end())
        if match is not None and not _too_long(match) and not _PLACES.match(text, match.end()):
            found.append((rounds, _number(match)))
    for bold in _BOLD.finditer(text):
        numbers = _numbers(bold[1].rpartition("=")[2])
        if len(numbers) == 1:
            found.append((bold, numbers[0]))
    return found


def _numbers(text: str) -> list[Number]:
    return [_number(match) for match in _NUMBER.finditer(text) if not _too_long(match)]


def _too_long(match: re.Match[str]) -> bool:
    return match.end() - match.start() > LONGEST_NUMBER


def _number(match: re.Match[str]) -> Number:
    negative = (match["sign"] or "").strip() == "-" or match["inner_sign"] is not None
    if match["whole"] is not None:
        written = f"{match['whole']} {match['mixed_top']}/{match['mixed_bottom']}"
        value = Fraction(match["whole"]) + Fraction(
            int(match["mixed_top"]), int(match["mixed_bottom"])
        )
    else:
        written = match["top"] + (f"/{match['bottom']}" if match["bottom"] else "")
        value = _decimal(match["top"]) / _decimal(match["bottom"] or "1")
    percent = match["percent"] is not None
    text = ("-" if negative else "") + written + ("%" if percent else "")
    return Number(text, -value if negative else value, percent)


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _close(a: Fraction, b: Fraction) -> bool:
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def _rounded(expected: Fraction, found: Fraction, written: str) -> bool:
    """Whether `found` is `expected` rounded, where `expected` has no finite decimal."""
    rest = expected.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    places = len(written.rstrip("%").partition(".")[2])
    return rest != 1 and "/" not in written and places >= 2 and round(expected, places) == found


def _normal_words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+|[-+*/=%.]", text.casefold().strip(" .*:"))).strip(" .")
