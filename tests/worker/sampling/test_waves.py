"""How many questions are asked next, and when it is enough: decided by made answers."""

import pytest

from loco_worker.sampling import waves
from loco_worker.sampling.tries import Asked, Try
from loco_worker.sampling.waves import fruitless, wave_size
from loco_worker.sources.questions import question_of


def asked(*right: bool, number: int = 1, answers: tuple[str, ...] = ()) -> Asked:
    question = question_of(number, {"question": f"What is {number} + 0?", "answer": str(number)})
    texts = answers or tuple(f"way {n}" for n in range(len(right)))
    tries = [
        Try(n, text, is_right, None if is_right else "not it", 3, ended=True)
        for n, (is_right, text) in enumerate(zip(right, texts, strict=True), start=1)
    ]
    return Asked(question, tries)


@pytest.mark.parametrize(
    ("missing", "got", "of", "size"),
    [
        (232, 0, 0, 232),  # the first one
        (58, 174, 232, 78),  # 75 % of them were solved
        (0, 232, 300, 0),
        (-3, 235, 300, 0),
        (100, 1, 232, 400),  # a bad start must not ask everything at once
        (500, 0, 150, 50),  # not more than it takes to give up
        (10, 0, 150, 50),
        (4, 0, 30, 30),  # twice as many in all
    ],
)
def test_a_wave_is_as_large_as_the_yield_says(missing: int, got: int, of: int, size: int) -> None:
    assert wave_size(missing, got, of) == size


def test_two_hundred_in_a_row_that_brought_nothing_are_enough() -> None:
    assert not fruitless(waves.FRUITLESS, 1)
    assert fruitless(waves.FRUITLESS, 0)
    assert fruitless(waves.FRUITLESS + 7, 7)


def test_answers_that_differ_in_spacing_only_are_one() -> None:
    question = asked(True, True, True, answers=("It is  1.", "It is 1.", "1, of course."))
    assert [t.number for t in question.rights()] == [1, 3]


def test_cut_and_empty_answers_are_no_wrong_ones_to_train_on() -> None:
    question = asked(False, False, False, True, answers=("cut", "", "done", "1"))
    question.tries[0] = question.tries[0]._replace(ended=False)
    assert [t.text for t in question.wrongs()] == ["done"]
    assert question.mixed
