"""Whether an answer is right, by the grader an eval item names: pure functions, no service behind them.

An item without a grader is judged as ever: by `numeric` when its answer is a number, else by `words`.
Whatever a model or a user wrote, a verdict comes back in bounded time (docs/adr/0012).
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import assert_never

from loco.contracts.grading import (
    ChoiceGrader,
    CodeGrader,
    ContainsGrader,
    Grader,
    JsonGrader,
    NumericGrader,
    RegexGrader,
    WordsGrader,
)
from loco.contracts.patterns import affordable, compiled
from loco.grading import json_answers
from loco.grading.answers import (
    extract,
    extract_words,
    folded,
    is_words,
    parse,
    same,
    without_thinking,
)
from loco.grading.choices import chosen, label_of
from loco.grading.eval_items import EvalItem
from loco.grading.verdict import Graded

#: An answer longer than this without its thoughts, in characters of its compatibility form (NFKC), is
#: wrong without being read, so that every grader ends within about a second.
LONGEST_ANSWER = 50_000
#: Characters of an answer that a verdict quotes.
_QUOTED = 200


def grade(item: EvalItem, text: str) -> Graded:
    """Whether a model's text is a right answer to a problem.

    Args:
        item: the problem, with its grader.
        text: all the model wrote; a `<think>` part is not read.

    Raises:
        SandboxUnavailable: the grader is `code` and this machine cannot run code safely.
    """
    # a lone surrogate (from a tokenizer cut within a character) cannot be encoded
    text = without_thinking(text.encode(errors="replace").decode()).strip()
    if not text:
        return Graded(False, None, "empty")
    # one character may become 18
    if len(text) > LONGEST_ANSWER or len(unicodedata.normalize("NFKC", text)) > LONGEST_ANSWER:
        return Graded(False, None, f"longer than {LONGEST_ANSWER:,} characters")
    return _graded(item, item.grader or _default(item), text)


def check_gradable(items: Iterable[EvalItem]) -> None:
    """Whether this machine can grade all problems, before a model is asked any.

    Raises:
        SandboxUnavailable: a problem's grader is `code`, and code cannot run safely here.
    """
    if any(isinstance(item.grader, CodeGrader) for item in items):
        from loco.grading.sandbox import require_sandbox  # noqa: PLC0415 few sets hold code

        require_sandbox()


def _graded(item: EvalItem, grader: Grader, text: str) -> Graded:  # noqa: PLR0911 one a kind
    match grader:
        case NumericGrader():
            return _numeric(item, grader, text)
        case WordsGrader():
            return _words(item, grader, text)
        case ChoiceGrader():
            return _choice(item, grader, text)
        case ContainsGrader():
            return _contains(grader, text)
        case RegexGrader():
            return _regex(grader, text)
        case JsonGrader():
            return _json(item, grader, text)
        case CodeGrader():
            from loco.grading.code import grade_code  # noqa: PLC0415 few sets hold code

            return grade_code(text, grader)
        case _:
            assert_never(grader)


def _default(item: EvalItem) -> Grader:
    if parse(item.answer) is None:
        return WordsGrader(kind="words")
    return NumericGrader(kind="numeric")


def _numeric(item: EvalItem, grader: NumericGrader, text: str) -> Graded:
    wanted, found = parse(item.answer), extract(text)
    if found is None:
        return Graded(False, None, "gives no number")
    right = wanted is not None and (
        same(wanted, found) or 0 < abs(wanted.value - found.value) <= grader.tolerance
    )
    return Graded(right, found.text[:_QUOTED], None if right else f"not {item.answer}")


def _words(item: EvalItem, grader: WordsGrader, text: str) -> Graded:
    right = any(is_words(wanted, text) for wanted in (item.answer, *grader.also))
    return Graded(
        right, extract_words(text)[:_QUOTED] or None, None if right else f"not {item.answer}"
    )


def _choice(item: EvalItem, grader: ChoiceGrader, text: str) -> Graded:
    label = chosen(grader, text)
    if label is None:
        return Graded(False, None, "names no option, or several")
    right = label == label_of(grader, item.answer)
    return Graded(right, label, None if right else f"not {item.answer}")


def _contains(grader: ContainsGrader, text: str) -> Graded:
    read = folded(text, ignore_case=grader.ignore_case)

    def there(phrase: str) -> bool:
        wanted = folded(phrase, ignore_case=grader.ignore_case).strip()
        if not wanted:  # nothing but marks, like a fence's: the answer as it was written has them
            return phrase.strip() in text
        return _stands_in(wanted, read, whole_words=grader.whole_words)

    extracted = text[:_QUOTED]
    missing = next((p for p in grader.all if not there(p)), None)
    if missing is not None:
        return Graded(False, extracted, f"does not contain {missing!r}")
    if grader.any and not any(there(p) for p in grader.any):
        return Graded(False, extracted, f"has none of {', '.join(map(repr, grader.any))}"[:_QUOTED])
    unwanted = next((p for p in grader.none if there(p)), None)
    if unwanted is not None:
        return Graded(False, extracted, f"has {unwanted!r}")
    return Graded(True, extracted, None)


def _stands_in(phrase: str, text: str, *, whole_words: bool) -> bool:
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        before, after = text[start - 1 : start], text[end : end + 1]
        if not whole_words or not (
            (_is_word(before) and _is_word(phrase[0])) or (_is_word(after) and _is_word(phrase[-1]))
        ):
            return True
        start = text.find(phrase, start + 1)
    return False


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _regex(grader: RegexGrader, text: str) -> Graded:
    pattern = compiled(grader.pattern, ignore_case=grader.ignore_case)
    read = re.split(r"\r?\n", text)[-1].strip() if grader.where == "last_line" else text
    if not affordable(pattern, read):
        return Graded(False, read[:_QUOTED], "too long for this pattern")
    match = pattern.search(read) if grader.where == "search" else pattern.fullmatch(read)
    if match is None:
        return Graded(False, read[:_QUOTED], f"does not match {grader.pattern}"[:_QUOTED])
    return Graded(True, match.group()[:_QUOTED], None)


def _json(item: EvalItem, grader: JsonGrader, text: str) -> Graded:
    read = json_answers.found(text, only=grader.only)
    if read is None:
        return Graded(False, None, "is not JSON" if grader.only else "contains no JSON")
    if "expected" in grader.model_fields_set:
        expected: json_answers.Read | None = json_answers.Read(grader.expected)
    else:
        expected = json_answers.parsed(item.answer) if item.answer else None
    wrong = json_answers.fault(grader, expected, read)
    return Graded(wrong is None, json_answers.written(read)[:_QUOTED], wrong)
