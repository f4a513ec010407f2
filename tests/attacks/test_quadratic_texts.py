"""Texts on which hand-written patterns took time that grows with the square of their length.

Before: a row or an answer of 100,000 `(` kept the overlap check busy for over 60 seconds, one of blanks or
digits the search for its last number, one of `~` the search for code; cancel waited for its end.
"""

import time
from collections.abc import Callable

import pytest

from loco.contracts.grading import ChoiceGrader
from loco.datasets import overlap
from loco.grading import answers, choices, code, eval_items, json_answers
from loco_worker.measuring import report
from loco_worker.sampling import texts
from loco_worker.sources import questions, rows

_CHOICE = ChoiceGrader(kind="choice", options={"A": "Rome", "B": "Paris"})
_ITEM = eval_items.EvalItem(id="1", question="Why?", answer="5")


def _row(text: str) -> object:
    try:
        return rows.row_of(1, {"question": text, "answer": text})
    except ValueError:
        return None


def _question(text: str) -> object:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    try:
        return questions.question_of(1, {"messages": turns})
    except ValueError:
        return None


def _item(text: str) -> object:
    try:
        return eval_items.eval_items([(1, {"question": text, "answer": text})], "x")
    except eval_items.DataError:
        return None


def _overlap(text: str) -> object:
    index = overlap.OverlapIndex(13)
    index.add("a", "What is 15 + 27?")
    return index.match(text)


#: Reader to the pieces that it is asked about, over and over.
READERS: dict[str, Callable[[str], object]] = {
    "overlap": _overlap,
    "row": _row,
    "question": _question,
    "item": _item,
    "number": answers.extract,
    "expected": answers.parse,
    "words": answers.extract_words,
    "choice": lambda text: choices.chosen(_CHOICE, text),
    "json": json_answers.found,
    "code": lambda text: code.find_code(text, "f"),
    "hint": lambda text: texts.speaks_of_hint(text, "Why?"),
    "closing": lambda text: texts.closed(_ITEM, text),
    "report": report._escaped,
}
PIECES = (
    *(
        "(",
        "-(",
        ")",
        "-",
        "1",
        "1,",
        "1 ",
        "1/",
        "1/0",
        "0",
        "$",
        "%",
        ".",
        ". ",
        ",",
        " ",
        "\n",
        "\t",
    ),
    *(
        "\\boxed{",
        "{",
        "\\frac{",
        "\\frac{1}{",
        "\\text{",
        "= ",
        "=1+",
        "**",
        "* ",
        "`",
        "~",
        "~~~\n",
    ),
    *(
        "```",
        "```\n",
        "<think>",
        "<<1",
        "#",
        "####",
        "#### ",
        "####\n",
        "answer is ",
        "the answer is: ",
    ),
    *(
        "A: \n",
        "\nA:",
        "rounds to ",
        "1 per ",
        "½",
        "x=",
        "2x+",
        "option ",
        "B or ",
        "B\n",
        "result ",
    ),
    *("as given ", "[", '{"a":', '"', "\u3000", "\r\n", "1,111,", "!*"),
)
#: Small enough for a slow machine; a reader that is quadratic took 1 to 150 seconds for one of these.
SIZE = 16_000
#: Processor time of all pieces with a reader; measured: 1 to 6 s.
SECONDS = 45


@pytest.mark.parametrize("name", READERS)
def test_a_text_takes_time_in_proportion_to_its_length(name: str) -> None:
    read = READERS[name]
    slow: list[str] = []
    begun = time.process_time()
    for piece in PIECES:
        for head, tail in (("", "x"), ("The answer is ", ""), ("x=1\nA: ", "x\ny")):
            small, large = (
                _seconds(read, head + piece * (size // len(piece)) + tail)
                for size in (SIZE // 8, SIZE)
            )
            # eight times the text in 64 times the time is the square; under 0.3 s nothing can be said
            if large > 0.3 and large > 28 * small:
                slow.append(f"{head!r}, {piece!r}, {tail!r}: {small:.3f} and {large:.3f} s")
    assert not slow
    assert time.process_time() - begun < SECONDS


def _seconds(read: Callable[[str], object], text: str) -> float:
    """Processor time of the quickest of three readings, if the first looks slow: one pause tells nothing."""
    return min(_once(read, text) for _ in range(3)) if (first := _once(read, text)) > 0.1 else first


def _once(read: Callable[[str], object], text: str) -> float:
    begun = time.process_time()
    read(text)
    return time.process_time() - begun


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "The answer is 1" + "." * 50_000 + "x", "the result " * 20_000]
)
def test_the_texts_that_were_found(text: str) -> None:
    begun = time.process_time()
    _overlap(text)
    texts.speaks_of_hint(f"{text}. And 5.", "Why?")
    assert time.process_time() - begun < 10
