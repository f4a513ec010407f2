r"""Which of several options an answer names.

"B", "(B) Rome", "The answer is B.", "**B**", `\boxed{B}`, "Rome", "Yes, because …": the most explicit form
wins. An answer that names several options without saying which one it means names none.
"""

import re
from typing import NamedTuple

from loco.contracts.grading import ChoiceGrader
from loco.grading.answers import folded, plain, stated

_NEGATED = re.compile(
    r"(?:\bnot|n't|rather than|instead of|except)\s+(?:(?:the|an?|option|answer)\s+)*[\"'(\[]*$"
)
#: "B or C", "B/C": the answer does not decide.
_HEDGE = re.compile(r"[\s\"')\].]*(?:\bor\b|/)\s*(?:\b(?:the|an?|option)\b\s*)?[\"'(\[]*$", re.I)
_SET_OFF = re.compile(r"[\"'*]*\s*(?:[.,:;!)\]–—]|-\s|$)")  # noqa: RUF001
_BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
_CUE = re.compile(r"\b(?:option|choice|letter|answer)(?:\s+is)?:?\s*[\"'(\[*]*$", re.I)


#: Characters around an option that say how it is meant.
_NEAR = 40


class Mention(NamedTuple):
    """An option in a text."""

    start: int
    end: int
    #: Label of the option.
    label: str


def chosen(grader: ChoiceGrader, text: str) -> str | None:
    """The label of the option that a text names, or None when it names none or several."""
    text = plain(text)
    statement = stated(text)
    if statement is not None and (lines := statement.strip("*:\n ").splitlines()):
        found = mentions(grader, lines[0])
        if found:
            return _decided(lines[0], found)
    lines = [line.strip().lstrip("*#-> ").strip() for line in text.splitlines() if line.strip()]
    starts = {label for line in lines if (label := _heads(grader, line)) is not None}
    if len(starts) > 1:  # the options written out again: they choose nothing
        lines = [line for line in lines if _heads(grader, line) is None]
        text = "\n".join(lines)
    elif starts and (first := _heads(grader, lines[0])) is not None:
        return first
    bold = {m.label for part in _BOLD.findall(text) for m in mentions(grader, part)}
    if len(bold) == 1:
        return bold.pop()
    for part in (lines[-1] if lines else "", text):
        named = {m.label for m in mentions(grader, part)}
        if len(named) == 1:
            return named.pop()
    return None


def label_of(grader: ChoiceGrader, answer: str) -> str | None:
    """The label of the option that is exactly this, by label or by text."""
    wanted = folded(answer).strip()
    for form, label in _forms(grader):
        if folded(form).strip() == wanted:
            return label
    return None


def unclear(grader: ChoiceGrader) -> str | None:
    """Why its options cannot be told apart in a text, or None."""
    read: dict[str, str] = {}
    for form, _ in _forms(grader):
        key = folded(form).strip()
        if not key:
            return f"{form!r:.80} has only marks (** and `), which are ignored"
        if key in read:
            return f"{read[key]!r:.80} and {form!r:.80} are the same without marks"
        read[key] = form
    return None


def mentions(grader: ChoiceGrader, text: str) -> list[Mention]:
    """The options a text names and does not deny, in order; of overlapping ones the longest."""
    found: list[Mention] = []
    low = folded(text)
    taken = bytearray(len(low))
    # folding may change the length of a text (ß, ligatures): then letters are found in the folded one
    exact = text if len(low) == len(text) else low
    for form, label in sorted(_forms(grader), key=lambda f: -len(f[0])):
        letter = len(form) == 1 and form.isalpha() and form.isascii()
        bare = folded(text).strip(" .:()[]*\"'") == form.casefold()
        where = exact if letter and not bare and exact is text else low
        needle = form if where is text and letter and not bare else folded(form).strip()
        for match in re.finditer(rf"(?<!\w){re.escape(needle)}(?![\w'])", where):
            start, end = match.span()
            if letter and not bare and _is_article(exact, start, end):
                continue
            if _NEGATED.search(low[max(0, start - _NEAR) : start]):
                continue
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                found.append(Mention(start, end, label))
    return sorted(found)


def _forms(grader: ChoiceGrader) -> list[tuple[str, str]]:
    """Every way to name an option, with its label."""
    if isinstance(grader.options, dict):
        forms = [(label, label) for label in grader.options]
        return forms + [(text, label) for label, text in grader.options.items()]
    return [(label, label) for label in grader.options]


def _decided(line: str, found: list[Mention]) -> str | None:
    first = found[0]
    for other in found[1:]:
        if other.label != first.label and _HEDGE.fullmatch(
            line[first.end : min(other.start, first.end + _NEAR)]
        ):
            return None
    return first.label


def _heads(grader: ChoiceGrader, line: str) -> str | None:
    """The option a line begins with, set off by punctuation or its end."""
    for mention in mentions(grader, line):
        if line[: mention.start].strip(" ([\"'*"):
            return None
        if _SET_OFF.match(line, mention.end):
            return mention.label
        return None
    return None


def _is_article(text: str, start: int, end: int) -> bool:
    """Whether a lone letter is a word of a sentence ("A dog", "I think")."""
    if text[start:end] not in ("A", "I", "a"):
        return False
    # "(A) dog" and "A) dog" are labels, and so is what "option" announces
    after, before = text[end : end + _NEAR], text[max(0, start - _NEAR) : start]
    return bool(re.match(r"\s+(?!(?:or|and|is)\b)\w|'", after)) and not _CUE.search(before)
