"""Any text as a model's answer: a verdict, in time that grows with its length and no faster."""

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loco.contracts.grading import (
    ChoiceGrader,
    ContainsGrader,
    JsonGrader,
    NumericGrader,
    RegexGrader,
    WordsGrader,
)
from loco.datasets.overlap import calculation, normalise
from loco.grading.answers import extract, extract_words, is_correct, parse, plain, same
from loco.grading.eval_items import EvalItem
from loco.grading.graders import LONGEST_ANSWER, grade
from loco.grading.verdict import Graded
from loco_worker.sources.rows import Malformed, training_answer

PIECES = [
    "The answer is ", "#### ", "\\boxed{", "}", "{", "\\frac{", "\\text{", "$", "**", "=", "≈",
    "<think>", "</think>", "<<", ">>", "%", " per cent", "1,234", "3/4", "1 1/2", "½", ".", "-", "\u2212",
    "0", "7", "99", "(", ")", "\n", " ", "A:", "rounds to ", "```json\n", "[", "]", '"', "true", "A",
    "B)", "Option ", "x", "π", "\\", "\ud800", "٣", "²", "|", "_", "e9",
]  # fmt: skip
TEXT = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
GRADERS = [
    NumericGrader(kind="numeric", tolerance=0.5),
    WordsGrader(kind="words", also=("blue",)),
    ChoiceGrader(kind="choice", options=("A", "B", "C")),
    ChoiceGrader(kind="choice", options={"A": "Paris", "B": "Rome"}),
    ContainsGrader(kind="contains", all=("A",), none=("π",)),
    RegexGrader(kind="regex", pattern=r"(\d+|[a-z ]+)*="),
    JsonGrader(kind="json", expected={"a": [1]}),
]
#: Runs that were quadratic somewhere, or might be.
RUNS = ["(", ")", "1", "9 ", "1,", "1/", "-", " ", "\n", "{", "\\boxed{", "\\frac{", "$", "*", "**",
        "a*", "=", "= 1 ", "<think>", "<<", "####", "#### ", "[", '"', '{"a":', "is ", "answer ", "½",
        ".", "1.", "x+", "x=", "(1", "-(", "\ufdfa", "A:", "A", "<", "```", "`", "1 ", "1 1", "_"]  # fmt: skip


@given(text=TEXT)
@example(text="9" * 5000)
@example(text="1/" + "0" * 400)
@example(text="\\boxed{" + "9" * 5000 + "}")
def test_any_text_has_a_verdict(text):
    for grader in GRADERS:
        item = EvalItem(
            id="1", question="q", answer="A" if grader.kind == "choice" else "1", grader=grader
        )
        verdict = grade(item, text)
        assert isinstance(verdict, Graded)
        assert verdict.extracted is None or len(verdict.extracted) <= 500


@given(text=TEXT)
def test_any_text_is_plain_number_or_words(text):
    plain(text)
    extract_words(text)
    found = extract(text)
    if found is not None:
        assert isinstance(found.value, Fraction)
        assert same(found, found)
    is_correct(text, text)
    with suppress(Malformed):
        assert parse(training_answer(text).rpartition("The answer is ")[2]) is not None


@given(
    value=st.integers(-(10**12), 10**12),
    before=st.text(max_size=20),
    words=st.text("abc \n", max_size=20),
)
def test_a_stated_number_is_found(value, before, words):
    if "<think>" in before:
        return
    for form in (
        f"{before}\nThe answer is {value}",
        f"{words}\\boxed{{{value}}}",
        f"{words}\n#### {value}",
    ):
        found = extract(form)
        assert found is not None
        assert found.value == value


def seconds(function, text: str) -> float:
    started = time.process_time()
    function(text)
    return time.process_time() - started


def quickest(function, text: str) -> float:
    """The least of three: a busy machine makes one of them slow."""
    return min(seconds(function, text) for _ in range(3))


def graded(text: str) -> None:
    for grader in GRADERS:
        grade(
            EvalItem(
                id="1", question="q", answer="A" if grader.kind == "choice" else "1", grader=grader
            ),
            text,
        )


def trained(text: str) -> None:
    with suppress(Malformed):
        training_answer(text)


FUNCTIONS = [graded, extract, extract_words, trained, normalise, calculation]


@pytest.mark.parametrize(("function", "run"), [(f, r) for f in FUNCTIONS for r in RUNS])
def test_runs_take_time_in_step_with_their_length(function, run):
    """Eight times the text takes about eight times as long; sixty-four would be a square."""
    small = run * (2_000 // len(run))
    large = run * (16_000 // len(run))
    assert len(large) < LONGEST_ANSWER
    took = quickest(function, large)
    if took > 0.25:
        assert took < 32 * max(quickest(function, small), 0.02), f"{took:.2f} s"
