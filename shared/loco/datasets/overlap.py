"""Keeps eval questions out of the training data.

A row overlaps an eval item when, after normalisation, the questions are equal, when they share a
long run of words, when they pose the same written-out calculation ("Compute 15 + 27." is "What is
15 + 27?"), or when a generator made both from the same numbers.
"""

import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

#: A whole eval question shorter than the n-gram counts as one when it has at least this many words.
SHORTEST_QUESTION = 5

_OPERATORS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "⁄": "/"})  # noqa: RUF001
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|(?<![^\W\d_])-(?=[\s\d])|[+*/=%^]|-(?=\d)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# from its first operand on: signs and brackets before it are put back by `calculation`, for a run of
# them tried from each of its characters would take time that grows with the square of its length
_EXPRESSION = re.compile(
    r"(?<![\w.])(?:\d+(?:\.\d+)?[a-z]?|[a-z](?=\s*[-+*/=]))[)]*"
    r"(?:\s*[-+*/=]\s*[-(]*(?:\d+(?:\.\d+)?[a-z]?|[a-z](?![a-z]))[)]*)+"
)
_WORD_END = re.compile(r"[\w.]\Z")


class Match(NamedTuple):
    """Why a row overlaps."""

    #: ID of the eval item.
    item: str
    #: `equal`, `ngram`, `calculation` or `problem`.
    rule: str


class OverlapIndex:
    """Eval questions, prepared for comparing many rows with them.

    Args:
        ngram: words in a row that two questions may not share.
    """

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        # every table leads to the IDs of all items with that key
        self._equal: dict[str, list[str]] = {}
        self._grams: dict[int, dict[tuple[str, ...], list[str]]] = {}
        self._calculations: dict[str, list[str]] = {}
        self._problems: dict[str, list[str]] = {}
        self.items = 0

    def add(self, item: str, question: str, problem: str | None = None) -> None:
        """Takes in an eval item.

        Args:
            item: its ID, `SET/ID`.
            question: its text.
            problem: what identifies it to the generator that made it, if one did.
        """
        words = tokens(question)
        self._equal.setdefault(" ".join(words), []).append(item)
        length = min(self._ngram, len(words))
        if length >= min(SHORTEST_QUESTION, self._ngram):
            table = self._grams.setdefault(length, {})
            for gram in _ngrams(words, length):
                table.setdefault(gram, []).append(item)
        if (posed := calculation(question)) is not None:
            self._calculations.setdefault(posed, []).append(item)
        if problem is not None:
            self._problems.setdefault(problem, []).append(item)
        self.items += 1

    def match(self, question: str, problem: str | None = None) -> Match | None:
        """The first eval item a question overlaps, or None."""
        return next(self.matches(question, problem), None)

    def matches(self, question: str, problem: str | None = None) -> Iterator[Match]:
        """Every eval item a question overlaps, by every rule; one may come more than once."""
        words = tokens(question)
        for item in self._equal.get(" ".join(words), ()):
            yield Match(item, "equal")
        if problem is not None:
            for item in self._problems.get(problem, ()):
                yield Match(item, "problem")
        if self._calculations and (posed := calculation(question)) is not None:
            for item in self._calculations.get(posed, ()):
                yield Match(item, "calculation")
        for length, table in self._grams.items():
            for gram in _ngrams(words, length):
                for item in table.get(gram, ()):
                    yield Match(item, "ngram")


def normalise(question: str) -> str:
    """A question without case, punctuation, spacing and currency; numbers and operators stay."""
    return " ".join(tokens(question))


def tokens(question: str) -> list[str]:
    """The words, numbers and operators of a question."""
    return _TOKEN.findall(_folded(question))


def calculation(question: str) -> str | None:
    """The written-out calculation a question consists of, e.g. "15+27" or "2x+5=13", or None.

    None too when numbers stand outside it: then it is a part of a larger problem ("3/4 of 60").
    """
    text = _folded(question)
    found = list(islice(_EXPRESSION.finditer(text), 2))
    if len(found) != 1:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    if re.search(r"\d", before) or re.search(r"\d", after):
        return None
    rest = before.rstrip("-(")
    opening = before[len(rest) :]
    if _WORD_END.search(rest[-1:]):  # "f(2+3)": the bracket belongs to the word
        opening = opening[1:]
    return opening + re.sub(r"\s", "", found[0][0])


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_OPERATORS).casefold()
    return _THOUSANDS.sub("", text)


def _ngrams(words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(words) - length + 1):
        yield tuple(words[start : start + length])
