"""Picks a grader from what right answers look like, and says why.

Where an answer may be judged by comparing it, it is; long texts are only looked through for what must
be in them. Whatever is picked stands in the eval set, a line each, for its owner to change.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loco.contracts.grading import ChoiceGrader, ContainsGrader, Grader, JsonGrader, WordsGrader
from loco.grading.answers import extract, parse, words_in
from loco.grading.choices import label_of, unclear
from loco.grading.json_answers import parsed

#: Different answers that still look like options.
MOST_OPTIONS = 12
#: Characters and words of an answer that is compared word by word.
LONGEST_EXACT = 80
MOST_WORDS = 8
#: Phrases that a long answer must hold.
_PHRASES = 3
_LONGEST_OPTION = 40
#: How often an option appears on average, at least.
_REPEATED = 3
#: Share of the answers that must look like code.
_MOSTLY = 0.8

#: A number and nothing else; one with its unit is a text.
_NUMBER = re.compile(r"[-+]?[$€£¥]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s?%?")
_WORKED = re.compile(r"(?:####|\bthe answer is:?)\s*(\S[^\n]*)\s*\Z", re.I)
_CODE = re.compile(r"```|^\s*(?:def|class|import|from|function|#include|SELECT)\b", re.M)
_FUNCTION = re.compile(r"^\s*(?:async\s+)?def\s+([A-Za-z_]\w*)", re.M)
_WORD = re.compile(r"[^\W_][\w.-]*[^\W_]|\d")


@dataclass(frozen=True)
class Picked:
    """How the answers of a set are judged."""

    #: `numeric`, `choice`, `json`, `words`, `contains`: a kind of `contracts.grading`.
    kind: str
    #: For people: what the answers look like, and so what is compared.
    why: str
    #: Right answers to their graders; None: by the rule of eval sets without a grader.
    graders: Mapping[str, Grader | None]
    #: Right answers to what is compared with.
    wanted: Mapping[str, str]
    #: What the owner should know or do; empty: nothing.
    advice: str = ""

    def fields(self, answer: str) -> dict[str, Any]:
        """`answer` and, where there is one, `grader` of a problem's line."""
        grader = self.graders[answer]
        fields: dict[str, Any] = {"answer": self.wanted[answer]}
        if grader is not None:
            fields["grader"] = grader.model_dump(mode="json", exclude_defaults=True)
        return fields


def pick(answers: Sequence[str]) -> Picked:
    """The grader that fits right answers best.

    Args:
        answers: of all rows, at least one; as they are trained on.
    """
    return (
        _numbers(answers)
        or _options(answers)
        or _json(answers)
        or _code(answers)
        or _short(answers)
        or _long(answers)
    )


def _numbers(answers: Sequence[str]) -> Picked | None:
    """Bare numbers, or workings that end on one (`#### N`, "The answer is N")."""
    wanted = {answer: number for answer in answers if (number := _number(answer)) is not None}
    if len(wanted) < len(set(answers)):
        return None
    worked = any(wanted[answer] != answer.strip() for answer in answers)
    what = "every answer ends with a number" if worked else "every answer is a number"
    why = f"{what}, so only the number in the model's answer is compared, not the way to it"
    return Picked("numeric", why, dict.fromkeys(wanted), wanted)


def _number(answer: str) -> str | None:
    text = answer.strip()
    if (found := _WORKED.search(text[-400:])) is not None:
        number = extract(found[0])
        return number.text.replace(",", "") if number is not None else None
    return text if _NUMBER.fullmatch(text) and parse(text) is not None else None


def _options(answers: Sequence[str]) -> Picked | None:
    """A few short answers, again and again."""
    different = sorted({answer.strip() for answer in answers})
    if not 2 <= len(different) <= min(MOST_OPTIONS, len(answers) // _REPEATED):
        return None
    if any(len(o) > _LONGEST_OPTION or "\n" in o for o in different):
        return None
    if len({option.casefold() for option in different}) < len(different):
        return None
    grader = ChoiceGrader(kind="choice", options=tuple(different))
    if unclear(grader) is not None or any(label_of(grader, o) is None for o in different):
        return None
    shown = ", ".join(different[:6]) + (", …" if len(different) > 6 else "")
    why = (
        f"only {len(different)} different answers appear ({shown}), so the model must name the "
        "right one"
    )
    return Picked("choice", why, dict.fromkeys(answers, grader), {a: a.strip() for a in answers})


def _json(answers: Sequence[str]) -> Picked | None:
    """Lists or objects."""
    for answer in answers:
        read = parsed(answer.strip()) if answer.strip()[:1] in ("{", "[") else None
        if read is None:
            return None
    why = "every answer is JSON, so values are compared; spacing and order of fields do not matter"
    grader = JsonGrader(kind="json")
    return Picked("json", why, dict.fromkeys(answers, grader), {a: a.strip() for a in answers})


def _code(answers: Sequence[str]) -> Picked | None:
    """Programs: without tests nothing can run them, so the functions they define are looked for."""
    if sum(map(_looks_like_code, answers)) < _MOSTLY * len(answers):
        return None
    rare = _rarest(answers)
    graders = {a: _holds(_FUNCTION.findall(a)[:_PHRASES] or rare[a]) for a in answers}
    return Picked(
        "contains",
        "most answers are code, but the rows have no tests, so only the names that the code "
        "must define are checked",
        graders,
        {answer: answer for answer in answers},
        'Give each line of the eval set tests: "grader": {"kind": "code", "entry": "f", "cases": '
        '[{"args": [2], "expected": 4}]}. Then the grader runs the answers (docs/eval.md).',
    )


def _looks_like_code(answer: str) -> bool:
    if _CODE.search(answer):
        return True
    if not re.search(r"[=(]", answer):
        return False
    try:
        return any(not isinstance(node, ast.Expr) for node in ast.parse(answer).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _short(answers: Sequence[str]) -> Picked | None:
    """Names, dates, quantities: compared word by word."""
    for answer in answers:
        text = answer.strip()
        if len(text) > LONGEST_EXACT or "\n" in text or len(text.split()) > MOST_WORDS:
            return None
        if not words_in(text):
            return None
    why = (
        "the answers are short texts, so all words are compared; case and punctuation do not matter"
    )
    grader = WordsGrader(kind="words")
    return Picked("words", why, dict.fromkeys(answers, grader), {a: a.strip() for a in answers})


def _long(answers: Sequence[str]) -> Picked:
    """Texts that may be said in many ways: what must be in them is looked for."""
    rare = _rarest(answers)
    graders = {answer: _holds(rare[answer]) for answer in answers}
    return Picked(
        "contains",
        f"the answers are long texts, which no program can judge, so up to {_PHRASES} typical "
        "words of each answer are checked",
        graders,
        {answer: answer for answer in answers},
        "Edit the eval set: put what a right answer must contain into `grader.all`, and what it "
        "must not contain into `grader.none`.",
    )


def _rarest(answers: Sequence[str]) -> dict[str, list[str]]:
    """The words of each answer that the fewest others have; numbers count as words."""
    words = {answer: list(dict.fromkeys(_WORD.findall(answer)))[:2000] for answer in answers}
    spread = Counter(word.casefold() for found in words.values() for word in found)
    return {
        answer: sorted(
            sorted(found, key=lambda w: (spread[w.casefold()], -len(w)))[:_PHRASES], key=found.index
        )
        or [answer.strip()[:200]]
        for answer, found in words.items()
    }


def _holds(phrases: Sequence[str]) -> ContainsGrader:
    return ContainsGrader(kind="contains", all=tuple(phrase[:200] for phrase in phrases))
