"""What is asked and what is trained on, word for word."""

import pytest

from loco.grading.eval_items import EvalItem
from loco_worker.sampling.texts import closed, conversation, hinted_turns, speaks_of_hint, system_of
from loco_worker.sources.questions import question_of
from loco_worker.sources.rows import Row


def item(answer: str, grader: object = None) -> EvalItem:
    return EvalItem.model_validate({"id": "1", "question": "q", "answer": answer, "grader": grader})


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("2 + 5 = 7", "2 + 5 = 7\nThe answer is 7"),
        ("It is 7.\nThe answer is 7.", "It is 7.\nThe answer is 7."),
        ("It is 7.\nSo the final answer is: $7$", "It is 7.\nSo the final answer is: $7$"),
        ("The answer is 7.\nCheck: 7 - 5 = 2, 2 + 5 = 7", None),
        (r"\boxed{7}", "\\boxed{7}\nThe answer is 7"),
    ],
)
def test_the_right_number_closes_an_answer(text: str, trained: str | None) -> None:
    assert closed(item("7"), text) == (trained or f"{text}\nThe answer is 7")


def test_the_expected_number_is_written_plainly() -> None:
    assert closed(item("1,234"), "That is 1234 dollars").endswith("\nThe answer is 1234")


@pytest.mark.parametrize(
    ("expected", "tolerance", "text", "stays"),
    [
        ("3.14159", 0.01, "The answer is 3.14", True),
        ("3.14159", 0.001, "The answer is 3.14", False),
        ("3.14159", 0.01, "It is about 3.14", False),
        ("1/3", 0.001, "The answer is 0.333", True),
        ("1/3", 0, "The answer is 0.333", True),
        ("1/3", 0.05, "The answer is 0.3", True),
    ],
)
def test_a_closing_that_the_grader_takes_is_not_contradicted(
    expected: str, tolerance: float, text: str, stays: bool
) -> None:
    asked = item(expected, {"kind": "numeric", "tolerance": tolerance})
    assert closed(asked, text) == (text if stays else f"{text}\nThe answer is {expected}")


@pytest.mark.parametrize(
    ("answer", "grader"),
    [("Paris", None), ("B", {"kind": "choice", "options": ["A", "B"]}), ("7", {"kind": "words"})],
)
def test_other_graders_close_nothing(answer: str, grader: object) -> None:
    assert closed(item(answer, grader), f"I say {answer}") == f"I say {answer}"


def row() -> Row:
    return question_of(1, {"question": "What is 2 + 5?", "answer": "#### 7"})


def test_the_hint_is_asked_with_and_not_trained_on() -> None:
    question = row()
    assert question.item is not None
    [turn] = hinted_turns(question, question.item)
    assert turn["content"].startswith("What is 2 + 5?\n\n")
    assert "7" in turn["content"]
    trained = conversation(question, "2 + 5 = 7", None)
    assert trained == [
        {"role": "user", "content": "What is 2 + 5?"},
        {"role": "assistant", "content": "2 + 5 = 7"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "As the hint says, it is 7.",
        "Since you told me the result, 7.",
        "This matches the given answer, 7.",
        "The correct answer is 7, as provided.",
        "You mentioned 7.",
        "First, 2 + 5. Of it we know the result is 7, as it stands here.",
        "(The result is 7. Work it out step by step as if you did not know it.)\n2 + 5 = 7",
        "2 + 5 = 7. Work it out step by step as if you did not know it.",
        "I'd do it as if I didn't know it: 2 + 5 = 7",
        "We are given that the result is 7. So 2 + 5 = 7.",
        "2 + 5 is 7.\nThe result is known to be 7.",
        "I will not mention that it stands here. 2 + 5 = 7",
        "I won't write it, and do not mention that it is here.",
        "**The result is 7.**\n\n2 + 5 = 7",
        "The answer is 7. Two and five make it.",
        "Since the result is 7, we add 2 and 5.\n2 + 5 = 7",
        "2 + 5 = 7, which matches the expected result.",
        "We were told that the answer is 7.",
        "As already stated, the result is 7.",
        "The answer is given in the question: 7.",
        "The answer is 7, just as you said it is 7.",
    ],
)
def test_an_answer_that_speaks_of_the_hint_is_seen(text: str) -> None:
    assert speaks_of_hint(text, "What is 2 + 5?")


@pytest.mark.parametrize(
    "text", ["2 + 5 = 7. The answer is 7.", "So he told 7 jokes.", "The correct answer is 7."]
)
def test_one_that_does_not_is_not(text: str) -> None:
    assert not speaks_of_hint(text, "Tom told 2 jokes and then 5. How many has he told?")


@pytest.mark.parametrize(
    "text",
    [
        "If you gave 3 to Ann, 4 are left. The answer is 4.",
        "Since you have given away 3, you keep 4.",
        "He was told to buy 7. So he buys 7.",
        "We are told that Tom has 3 apples.",
        "We are given that the rope is 7 m long.",
        "The expected result is 7.",
        "The answer is given by 3 * 4 = 12.",
        "The answer is given in dollars: 12.",
        "As stated in the problem, Tom has 2. As mentioned earlier, Ann has 5.",
        "Based on the numbers you provided, 2 + 5 = 7.",
        "Let's work it out step by step. As Tom has 2, he needs 5.",
        "Let us work it out step by step, as follows: 2 + 5 = 7",
        "Now we know the result of the first step, 7. Add it to the result.",
        "The result is 12 work hours.",
        "The result is 7",
        "So the final result is 7. The answer is 7.",
        "A tower stands here for 7 years, provided that it is kept.",
        "She gave the answer 7, he the answer 8.",
    ],
)
def test_the_words_of_word_problems_are_none_of_the_hint_s(text: str) -> None:
    assert not speaks_of_hint(text, "What is 2 + 5?")


def test_words_of_the_question_may_be_said_again() -> None:
    question = (
        "Ann takes the hint. The result is known to be even; as if you did not know it, find it."
    )
    assert not speaks_of_hint("Ann takes the hint: it is even, known to be even. 7", question)
    assert not speaks_of_hint("It asks: as if you did not know it, find it. 8", question)


def test_the_instruction_follows_the_row_s_own_system_prompt() -> None:
    turns = [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": "2 + 5?"},
        {"role": "assistant", "content": "7"},
    ]
    question = question_of(1, {"messages": turns})
    assert system_of(question, "In words.") == "You count.\n\nIn words."
    assert system_of(question, None) == "You count."
    assert conversation(question, "7", None) == turns
    assert system_of(row(), None) is None
