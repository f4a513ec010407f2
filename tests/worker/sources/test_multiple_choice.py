"""Questions with distractors, as SciQ has them, become questions with options."""

import json
from collections import Counter

import pytest

from loco.grading.graders import grade
from loco_worker.sources.multiple_choice import has_choices, with_options
from loco_worker.sources.questions import question_of
from loco_worker.sources.rows import Malformed, row_of

SCIQ = {
    "question": "What do plants take in?",
    "distractor1": "helium",
    "distractor2": "neon",
    "distractor3": "argon",
    "correct_answer": "carbon dioxide",
    "support": "Plants breathe.",
}


def test_columns_of_sciq_are_known_and_others_are_not() -> None:
    assert has_choices(SCIQ)
    assert not has_choices(["question", "answer"])


def test_a_row_lists_its_options_and_trains_on_the_right_one() -> None:
    record = with_options(SCIQ)
    row = row_of(1, record)
    asked, answered = (turn["content"] for turn in row.conversations)
    assert asked.startswith("What do plants take in?\nA) ")
    for text in ("helium", "neon", "argon", "carbon dioxide"):
        assert f") {text}" in asked
    assert answered == "carbon dioxide"
    assert record == with_options(SCIQ), "the same order in every job"
    json.dumps(record)


def test_a_question_is_graded_by_letter_or_text() -> None:
    item = question_of(1, with_options(SCIQ)).item
    assert item is not None
    options = item.grader.options
    right = next(label for label, text in options.items() if text == "carbon dioxide")
    wrong = next(label for label in options if label != right)
    assert grade(item, f"They need it.\n{right}) carbon dioxide").correct
    assert grade(item, right).correct
    assert not grade(item, f"{wrong}) {options[wrong]}").correct


def test_the_right_option_stands_anywhere() -> None:
    places = Counter()
    for number in range(200):
        record = with_options({**SCIQ, "question": f"What do plants take in ({number})?"})
        labels = record["grader"]["options"]
        places[next(label for label, text in labels.items() if text == record["answer"])] += 1
    assert set(places) == set("ABCD")
    assert min(places.values()) > 30


@pytest.mark.parametrize(
    "broken",
    [
        {"distractor2": "Carbon dioxide"},
        {"correct_answer": " "},
        {"correct_answer": None},
        {"question": ""},
    ],
)
def test_a_row_that_cannot_be_asked_is_malformed(broken: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        row_of(1, with_options({**SCIQ, **broken}))
