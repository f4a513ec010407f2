"""What is sent to the model and what is trained on: prompts, closings, hints."""

import re
from itertools import chain

from loco.contracts.grading import NumericGrader
from loco.grading.answers import folded, parse
from loco.grading.eval_items import EvalItem
from loco.grading.graders import grade
from loco_worker.sources.rows import Row

Turns = list[dict[str, str]]

_CLOSING = re.compile(r"\banswer\s*(?:\w+\s+)?(?:is|:)", re.I)
_HINT = (
    "(The result is {}. Work it out step by step as if you did not know it, "
    "and do not mention that it stands here.)"
)
#: So many words in a row of the hint are an echo of it; # is a number.
_ECHO_WORDS = 5
_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,/]\d+)*")
#: Words of the hint that answers use without it: "Let's work it out step by step, as …".
_COMMON = ("the result is 1 work", "work it out step by step as")
_SENTENCE_END = re.compile(r"(?<=[.!?])[)*\"]*\s+|\n+")
_RESULT = r"(?:final |correct |right )?(?:result|answer)"
_THE_RESULT = rf"(?:that )?the {_RESULT}\b(?! (?:of|to|for|from)\b)"
_SAID = r"(?:given|provided|supplied|stated|told|mentioned|known|supposed)"
_YOU = r"you(?:'ve| have)?"
#: How a sentence gives away that the result was known, in folded text. Tight, since word problems tell, give
#: and expect, too: "He was told to buy 7", "The answer is given by 3 * 4", "the result of the first step".
_OF_THE_HINT = re.compile(
    "|".join(
        (
            r"\bhint",
            r"\b(?:it|as) stands here\b",
            rf"\b(?:not|without) mention(?:ing)? (?:that it|it here|{_THE_RESULT})",
            r"\bas if (?:i|we|you) (?:did not|didn't|do not|don't) (?:already )?know\b",
            rf"\bwithout (?:already )?knowing {_THE_RESULT}",
            rf"\b{_SAID} {_RESULT}\b",
            rf"\b(?:i|we|you) (?:already )?know {_THE_RESULT}",
            rf"\b(?:given|told|informed) (?:me |us )?{_THE_RESULT}",
            rf"\b{_YOU} (?:gave|provided|mentioned|said|stated) (?:me |us )?{_THE_RESULT}",
            rf"(?<!if )\b{_YOU} (?:mentioned|said|stated|told (?:me|us)) (?:that )?(?:it (?:is|was) )?\W?\d",
            rf"\b{_RESULT} (?:that |which )?(?:is|was|has been|we were|i was|we are)(?: already)? {_SAID}\b"
            r"(?! by (?!you\b)| in (?!the (?:problem|question|prompt|statement|parenthes|bracket)))",
            rf"\b{_RESULT} (?:that |which )?{_YOU} (?:gave|{_SAID}|said)\b",
            rf"\bas (?:was |is |already )?{_SAID}(?: \w+){{0,3}}, the {_RESULT}\b",
            r"\b(?:match(?:es|ing)?|agrees? with|consistent with) the (?:expected |desired |required )?"
            rf"{_RESULT}\b",
        )
    )
)
#: "the result is 7 as given": two words of a clause, looked for one after the other.
_THE_WORD = re.compile(rf"\b{_RESULT}\b")
_AS_SAID = re.compile(rf"\bas (?:was |is |already )?{_SAID}\b")
_CLAUSE_END = re.compile(r"\.(?!\d)")
#: A first sentence that has the result before any step.
_KNOWN_FIRST = re.compile(
    rf"^\W*the {_RESULT} (?:is|=|must be|should be)[ :]*\W{{0,3}}\d[\d.,/]*+(?: \w+){{0,2}}\W*$"
    rf"|\b(?:given|since|because|knowing|as|if|assume|assuming|suppose)(?: that)? the {_RESULT} "
    r"(?:is|was|must be|should be|equals|=)[ :]*\W{0,3}\d"
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
    content = f"{last['content']}\n\n{_HINT.format(item.answer)}"
    return [*before, {"role": "user", "content": content}]


def speaks_of_hint(text: str, question: str) -> bool:
    """Whether an answer speaks of a hint, in words that the question does not use itself.

    It does when it names the result as known, begins with it, or echoes the hint.
    """
    asked = folded(question)
    sentences = [folded(part) for part in _SENTENCE_END.split(text.strip()) if part.strip()]
    if len(sentences) > 1 and _KNOWN_FIRST.search(sentences[0]):
        return True
    if (_runs(text) & _ECHOES) - _runs(question):
        return True
    found = (match[0] for sentence in sentences for match in _OF_THE_HINT.finditer(sentence))
    clauses = (clause for sentence in sentences for clause in _CLAUSE_END.split(sentence))
    return any(words not in asked for words in chain(found, map(_as_said, clauses)))


def _as_said(clause: str) -> str:
    """From the result that a clause names to where it says that it was given; "" where it does not."""
    named = _THE_WORD.search(clause)
    said = list(_AS_SAID.finditer(clause, named.end())) if named else []
    return clause[named.start() : said[-1].end()] if named and said else ""


def _runs(text: str) -> set[tuple[str, ...]]:
    """All runs of `_ECHO_WORDS` words, whatever the numbers among them."""
    words = ["#" if word[0].isdigit() else word for word in _WORD.findall(folded(text))]
    return {tuple(words[n : n + _ECHO_WORDS]) for n in range(len(words) - _ECHO_WORDS + 1)}


_ECHOES = _runs(_HINT.format(1)).difference(*map(_runs, _COMMON))


def prompt(row: Row, trained_instruction: str | None) -> Turns:
    """The turns that a training row begins with."""
    system = system_of(row, trained_instruction)
    return [*([{"role": "system", "content": system}] if system else []), *asked_turns(row)]


def conversation(row: Row, answer: str, trained_instruction: str | None) -> Turns:
    """A training row's turns."""
    return [*prompt(row, trained_instruction), {"role": "assistant", "content": answer}]


def closed(item: EvalItem, text: str) -> str:
    """A right answer as it is trained on: "The answer is N" closes it where the grader is numeric.

    An answer whose last line closes it and is right by itself stays as it is: rounded as the grader
    lets it be, it must not be contradicted.
    """
    number = parse(item.answer)
    if number is None or not isinstance(item.grader, NumericGrader | None):
        return text
    last = text.rpartition("\n")[2]
    if _CLOSING.search(last) and grade(item, last).correct:
        return text
    return f"{text}\nThe answer is {number.text.replace(',', '')}"
