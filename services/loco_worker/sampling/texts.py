"""What is sent to the model and what is trained on: prompts, closings, hints."""

import re

from loco.contracts.grading import NumericGrader
from loco.grading.answers import extract, parse, same
from loco.grading.eval_items import EvalItem
from loco_worker.sources.rows import Row

Turns = list[dict[str, str]]

_CLOSING = re.compile(r"\banswer\s*(?:\w+\s+)?(?:is|:)", re.I)
#: How an answer gives away that it was told the result.
_OF_THE_HINT = re.compile(
    r"\bhint|\btold\b|\b(?:given|provided|supplied|stated|expected|known) (?:final )?"
    r"(?:answer|result)\b|\b(?:answer|result) (?:that )?(?:you|was|is|were) (?:gave|given|provided|told)"
    r"|\byou(?:'ve| have)? (?:said|stated|mentioned|provided|gave|given)\b|\bas (?:was )?(?:given|provided|stated|mentioned)\b",
    re.I,
)


def system_of(row: Row, instruction: str | None) -> str | None:
    """The system prompt of a question: the row's own, then the instruction; none: the model's own."""
    first = row.conversations[0]
    own = first["content"] if first["role"] == "system" else None
    return "\n\n".join(part for part in (own, instruction) if part) or None


def asked_turns(row: Row) -> Turns:
    """The turns that lead to a row's last answer, without the system prompt."""
    return [
        {"role": turn["role"], "content": turn["content"]}
        for turn in row.conversations[:-1]
        if turn["role"] != "system"
    ]


def hinted_turns(row: Row, item: EvalItem) -> Turns:
    """The same with the right answer as a hint at the end."""
    *before, last = asked_turns(row)
    hint = (
        f"{last['content']}\n\n(The result is {item.answer}. Work it out step by step as if you did "
        "not know it, and do not mention that it stands here.)"
    )
    return [*before, {"role": "user", "content": hint}]


def speaks_of_hint(text: str, question: str) -> bool:
    """Whether an answer speaks of a hint, in words that the question does not use itself."""
    asked = question.casefold()
    return any(found[0].casefold() not in asked for found in _OF_THE_HINT.finditer(text))


def prompt(row: Row, trained_instruction: str | None) -> Turns:
    """The turns that a training row begins with."""
    system = system_of(row, trained_instruction)
    return [*([{"role": "system", "content": system}] if system else []), *asked_turns(row)]


def conversation(row: Row, answer: str, trained_instruction: str | None) -> Turns:
    """A training row's turns."""
    return [*prompt(row, trained_instruction), {"role": "assistant", "content": answer}]


def closed(item: EvalItem, text: str) -> str:
    """A right answer as it is trained on: "The answer is N" closes it where the grader is numeric.

    An answer whose last line says so already stays as it is.
    """
    number = parse(item.answer)
    if number is None or not isinstance(item.grader, NumericGrader | None):
        return text
    last = text.rpartition("\n")[2]
    found = extract(last) if _CLOSING.search(last) else None
    if found is not None and same(number, found):
        return text
    return f"{text}\nThe answer is {number.text.replace(',', '')}"
