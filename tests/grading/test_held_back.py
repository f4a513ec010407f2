"""Which rows are held back to measure with."""

from typing import Any

import pytest

from loco.contracts.sources import SplitSource
from loco.datasets.overlap import OverlapIndex
from loco.datasets.rows import Row
from loco.grading.graders import grade
from loco.grading.held_back import Candidate, HeldBack, candidate_of, hold_back

CITIES = ("Lisbon", "Oslo", "Rome", "Paris", "Bern", "Wien", "Kyiv", "Riga", "Baku", "Doha")


def row(number: int, question: str = "", answer: str | None = "", **more: Any) -> Candidate:
    said = question or f"In which town does number {number} of the list live?"
    told = f"{CITIES[number % 10]} {number}" if answer == "" else answer
    return Candidate(f"row-{number}", said, told, **more)


def held(rows: list[Candidate], seed: int = 1, **split: Any) -> HeldBack:
    return hold_back(rows, SplitSource(kind="split", **split), seed, ngram=13)


@pytest.mark.parametrize(("count", "wanted"), [(29, 0), (30, 10), (60, 20), (300, 30), (4000, 200)])
def test_a_share_is_held_back_but_20_where_there_are_enough(count: int, wanted: int) -> None:
    found = held([row(n) for n in range(count)])
    assert len(found.items) == len(found.places) == wanted
    assert found.grader == ("words" if wanted else None)
    if not wanted:
        assert "30 are the least" in found.why


def test_more_rows_turn_few_old_rows_into_problems() -> None:
    before = held([row(n) for n in range(400)])
    after = held([row(n) for n in range(800)])
    old = {item.id for item in before.items}
    learned = {place for place in after.places if place < 400 and f"row-{place}" not in old}
    assert len(after.items) == 2 * len(before.items) == 80
    assert len(learned) <= 8  # of 80: the version before has learned these


def test_the_seed_decides_which() -> None:
    rows = [row(n) for n in range(100)]
    assert held(rows).places == held(rows).places != held(rows, seed=2).places


def test_the_grader_fits_the_answers_and_a_row_s_own_comes_first() -> None:
    numbers = held([row(n, answer=f"We add.\nThe answer is {n}") for n in range(60)])
    assert numbers.grader == "numeric"
    assert {item.answer for item in numbers.items} == {str(p) for p in numbers.places}
    own = {"kind": "regex", "pattern": "[a-z]+"}
    bringing = held([row(n, answer="abc", grader=own) for n in range(60)])
    assert bringing.grader == "own"
    assert {item.grader.kind for item in bringing.items if item.grader} == {"regex"}
    assert len(bringing.items) == 20


@pytest.mark.parametrize("said", ["The answer is {}", "It is on shelf {}, at the window."])
def test_thoughts_are_no_part_of_the_right_answer(said: str) -> None:
    """No grader reads a model's thoughts: with them in the right answer nothing passed."""
    texts = [f"<think>\nIs it {n}?\n</think>\n{said.format(n)}" for n in range(60)]
    rows = [candidate_of(a_row(n, text)) for n, text in enumerate(texts)]
    found = held(rows)
    assert len(found.items) == 20
    for item in found.items:
        text = texts[int(item.id.removeprefix("row-"))]
        assert grade(item, text).correct
        assert grade(item, text.partition("</think>")[2]).correct
        assert not grade(item, "<think>hm</think> I do not know.").correct
    nothing = [candidate_of(a_row(n, "<think>only thoughts</think>")) for n in range(60)]
    assert held(nothing).items == ()


def a_row(number: int, answer: str) -> Row:
    question = {"role": "user", "content": f"On which shelf is book {number}?"}
    return Row(number, "chat", [question, {"role": "assistant", "content": answer}])


def test_talks_and_pairs_are_no_problems() -> None:
    mixed = [row(n, answer=None if n % 2 else "") for n in range(100)]
    assert all(place % 2 == 0 for place in held(mixed).places)
    none = held([row(n, answer=None) for n in range(100)])
    assert not none.items
    assert "no row asks one question" in none.why


def test_rows_that_overlap_a_problem_are_named() -> None:
    rows = [row(n) for n in range(60)]
    rows += [row(100 + n, f"{rows[n].question} Say it in one word, please.") for n in range(60)]
    found = held(rows)
    index = OverlapIndex(13)
    for item in found.items:
        index.add(item.id, item.question)
    kept = set(range(120)) - found.places - found.alike
    assert found.alike
    assert not any(index.match(rows[place].question) for place in kept)


def test_rows_that_all_ask_nearly_the_same_are_all_trained_on() -> None:
    told = "Say whether the following review of a film is friendly or not, in one single word only:"
    found = held([row(n, f"{told} {CITIES[n % 10]} {n}") for n in range(100)])
    assert not found.items
    assert not found.alike
    assert "system prompt" in found.why


def test_a_system_prompt_is_asked_with() -> None:
    found = held([row(n, system="Answer in one word.") for n in range(60)])
    assert {item.system for item in found.items} == {"Answer in one word."}
