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
    ],
)
def test_an_answer_that_speaks_of_the_hint_is_seen(text: str) -> None:
    assert speaks_of_hint(text, "What is 2 + 5?")


@pytest.mark.parametrize(
    "text", ["2 + 5 = 7. The answer is 7.", "So he told 7 jokes.", "The correct answer is 7."]
)
def test_one_that_does_not_is_not(text: str) -> None:
    assert not speaks_of_hint(text, "Tom told 2 jokes and then 5. How many has he told?")


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
